"""A fabric of several machines on one computer, for trying out and for tests: ``machineplane lab``.

A machine here is a set of namespaces (network, mounts, processes, host name, IPC) held by a process of its
own; what runs in it is the ordinary daemon. All machines hang on one bridge in a namespace of the lab's own
(the hub), and the computer itself has an address on it.
"""
