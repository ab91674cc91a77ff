"""For tests against this package: a seeded network simulator and strategies for hypothesis.

`magik_proto.testing.network` needs nothing but this package; `magik_proto.testing.strategies` needs
hypothesis.
"""
