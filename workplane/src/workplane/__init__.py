"""The agent of a Magik pod. So far: its command line and configuration; see README.md for what is not there yet."""

__version__ = "0.1.0"
