"""The init of a microVM: it runs a pod's app and what is put beside it, for the machine at the other end of a vsock port.

`init` is the program, `supervision` what it decides, `session` one process with its connection, `child` the way from a fork
to a program, `furnish` what the app's root gets of the guest's kernel. It starts with each container, so nothing is imported
but Python's own library and `magik_proto.guest`.
"""
