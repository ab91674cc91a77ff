"""Magik's protocol without I/O: bytes and clock readings in, values and actions out.

Nothing in this package opens a socket, starts a thread, reads a clock or imports Trio. Names live in the
modules: `magik_proto.messages`, `magik_proto.identity`, `magik_proto.signing` and so on; importing the
package alone is free.
"""
