"""The helper process of one pod: single-threaded, small, outlives the daemon.

Everything in this package is imported by the zygote before any shim is forked, so it imports little: no Trio, no attrs.
"""
