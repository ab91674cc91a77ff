"""The error tree: whose fault it was, and by which rule."""

from __future__ import annotations

import pickle

from magik_proto.errors import InvalidField, LocalProtocolError, ProtocolError, RemoteProtocolError


def test_the_tree_tells_our_fault_from_the_peers() -> None:
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert not issubclass(RemoteProtocolError, LocalProtocolError)
    assert issubclass(InvalidField, LocalProtocolError)


def test_messages_name_rule_and_detail() -> None:
    assert str(RemoteProtocolError("codec.tag", "tag 2 at byte 0")) == "codec.tag: tag 2 at byte 0"
    assert str(RemoteProtocolError("codec.tag")) == "codec.tag"
    assert str(InvalidField("slots", "must be an integer")) == "slots: must be an integer"


def test_errors_survive_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(RemoteProtocolError("a.b", "c")))
    assert (error.rule, error.detail) == ("a.b", "c")
