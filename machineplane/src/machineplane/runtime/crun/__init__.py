"""libcrun through ctypes. Only single-threaded helper processes may import :mod:`.binding`."""
