"""Which connection with a peer stays: decided by the accepting side alone, from the dialler's hello.

A node dials only peers with which it has no connection, and every connection begins with the dialler's
hello. That hello carries the dialler's *incarnation* (a random number per start of the node) and its
*count* (how many connections it had taken into use when it wrote the hello). The acceptor's answer is
final, so both ends agree without further words:

- The acceptor's own dial to that peer has its hello under way as well (simultaneous open): the connection
  dialled by the smaller peer id stays. The other end reaches the mirror image of this answer by the same
  rule.
- The acceptor has a connection with that incarnation, and the hello was written before the dialler took
  that one into use: a leftover of a simultaneous open; refused.
- Otherwise the dialler has none, whatever the acceptor believes (it restarted, or lost it first): the new
  one replaces.
"""

from __future__ import annotations

import enum

from attrs import frozen

from magik_proto.identity import PeerId


@frozen
class Standing:
    """What is known of one end of a connection in use:

    Which start of the peer, and its count when it took it.
    """

    incarnation: int
    count: int


class Answer(enum.Enum):
    """The acceptor's answer to a hello."""

    TAKE = "take"  # the first with this peer, or in place of a dead one of the same start
    TAKE_RESTARTED = "restarted"  # in place of one with an earlier start of the peer
    DUPLICATE = "duplicate"  # refused: another connection stays
    FULL = "full"  # refused: no room


def answer_hello(
    me: PeerId, peer: PeerId, offered: Standing, current: Standing | None, *, my_hello_sent: bool, room: bool
) -> Answer:
    """Decide on the hello `offered` by `peer`; `current` is the connection in use with it, if any."""
    if current is not None and current.incarnation == offered.incarnation:
        return Answer.DUPLICATE if offered.count < current.count else Answer.TAKE
    if my_hello_sent and me < peer:
        return Answer.DUPLICATE
    if current is not None:
        return Answer.TAKE_RESTARTED
    return Answer.TAKE if room else Answer.FULL
