"""Whole fabrics in one process and in virtual time, by the very code of the daemons.

A `Machine` is what a node is without sockets: gossip, hash table and auctions of `magik_proto`, and the
policies of `magik_mesh` (`links`, `dialing`, `arbitration`) around them. A `Fabric` puts thousands of them on
`magik_proto.testing.network`; `scenarios` are what happens to it, and what is measured.
"""
