"""The daemon of a Magik machine: see ARCHITECTURE.md for the way of a `kubectl apply` through its rooms."""

__version__ = "0.1.0"
