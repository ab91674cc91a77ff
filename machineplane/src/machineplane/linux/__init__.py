"""Thin bindings to the kernel that several rooms share: system calls, nftables. Imports no room."""
