"""Gossip that knows its peers: what a score, an address or a broken word changes."""

from typing import Any

import attrs
import pytest

from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip import (
    Appraise,
    FrameReceived,
    FramesDropped,
    Gossip,
    GossipConfig,
    GossipOutput,
    Malformed,
    Misbehaved,
    PeerConnected,
    PeerGone,
    Publish,
    SendFrame,
    Subscribe,
    Validate,
    Validated,
    Verdict,
)
from magik_proto.gossip_frames import message_id
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

T = "magik-fabric"
ID = message_id(T, b"hello")
LARGE = bytes(5000)
LARGE_ID = message_id(T, LARGE)


def said(gossip: Gossip, number: int, now: float = 0.0, **frame: Any) -> list[GossipOutput]:
    return gossip.receive(FrameReceived(peer(number), frame), now)


def meshed(count: int, config: GossipConfig | None = None, *, dialled: int = 0) -> Gossip:
    """A subscriber with `count` subscribed peers, 1 and up, the last `dialled` of them dialled by us."""
    gossip = Gossip(peer(0), SeededRandom(1), config)
    gossip.receive(Subscribe(T), 0.0)
    for number in range(1, count + 1):
        gossip.receive(PeerConnected(peer(number), outbound=number > count - dialled), 0.0)
        said(gossip, number, subscribe=[[T, True]])
    return gossip


def sends(outputs: list[GossipOutput], key: str) -> list[int]:
    """To whom a frame with this key goes."""
    return sorted(
        int.from_bytes(o.peer.raw, "big") for o in outputs if isinstance(o, SendFrame) and key in o.frame
    )


def appraise(gossip: Gossip, number: int, score: float) -> None:
    gossip.receive(Appraise(peer(number), score), 0.0)


def members(gossip: Gossip) -> list[int]:
    return [int.from_bytes(p.raw, "big") for p in gossip.mesh(T)]


# -- thresholds --------------------------------------------------------------------------------------


def test_below_the_gossip_threshold_no_ids_go_either_way() -> None:
    gossip = meshed(1)
    appraise(gossip, 1, -11.0)
    gossip.receive(Publish(T, b"hello"), 0.1)
    assert sends(gossip.poll(1.0), "ihave") == []
    assert said(gossip, 1, 1.0, ihave=[[T, [LARGE_ID]]]) == []
    assert said(gossip, 1, 1.0, iwant=[ID]) == []
    assert len(said(gossip, 1, 1.0, publish=[[T, b"other"]])) == 1, "messages are still taken"


@pytest.mark.parametrize(("score", "goes"), [(-49.0, [1]), (-51.0, [])])
def test_own_messages_do_not_go_below_the_publish_threshold(score: float, goes: list[int]) -> None:
    gossip = meshed(1)
    appraise(gossip, 1, score)
    assert sends(gossip.receive(Publish(T, b"hello"), 0.1), "publish") == goes


def test_what_a_graylisted_peer_sends_is_not_looked_at() -> None:
    gossip = meshed(3)
    appraise(gossip, 1, -81.0)
    assert said(gossip, 1, publish=[[T, b"hello"]], ihave=[[T, [ID]]], graft=[T]) == []
    said(gossip, 1, subscribe=[[T, False]])
    assert peer(1) not in gossip.subscribers(T), "but what is told only once is heard"


def test_two_invalid_messages_end_it() -> None:
    gossip = meshed(3)
    for payload in (b"a", b"b"):
        said(gossip, 1, publish=[[T, payload]])
        assert gossip.receive(Validated(message_id(T, payload), Verdict.REJECT), 0.1) == [
            Misbehaved(peer(1), "invalid message")
        ]
    assert gossip.score(peer(1), 0.1) == pytest.approx(-80.0, abs=0.01)
    assert sends(gossip.poll(1.0), "prune") == [1]
    assert members(gossip) == [2, 3]
    gossip.receive(PeerGone(peer(1)), 2.0)
    gossip.receive(PeerConnected(peer(1)), 3.0)
    assert said(gossip, 1, 3.0, subscribe=[[T, True]]) == [], "neither grafted nor told ids: it is remembered"


def test_malformed_frames_count() -> None:
    gossip = meshed(1)
    for _ in range(9):
        with pytest.raises(RemoteProtocolError):
            said(gossip, 1, graft=7)
        gossip.receive(Malformed(peer(1)), 0.0)
    gossip.receive(Malformed(peer(7)), 0.0)
    assert gossip.score(peer(1), 0.0) == -90.0
    assert gossip.score(peer(7), 0.0) == 0.0, "nothing is kept of strangers"


# -- the mesh ----------------------------------------------------------------------------------------


def test_the_heartbeat_puts_out_who_is_bad_and_takes_others_in() -> None:
    gossip = meshed(9)
    for number in (1, 2, 3):
        appraise(gossip, number, -1.0)
    outputs = gossip.poll(1.0)
    assert sends(outputs, "prune") == [1, 2, 3]
    assert members(gossip) == [4, 5, 6, 7, 8, 9]
    assert said(gossip, 1, 2.0, graft=[T]) == [SendFrame(peer(1), {"prune": [[T, 60]]})]


def test_grafts_within_the_back_off_are_held_against_the_peer() -> None:
    gossip = meshed(13)
    for number in range(1, 14):
        said(gossip, number, graft=[T])
    loser = next(n for n in range(1, 14) if n not in members(gossip))
    said(gossip, loser, 5.0, graft=[T])
    assert gossip.score(peer(loser), 5.0) == 0.0
    for now in (6.0, 7.0, 8.0):
        assert sends(said(gossip, loser, now, graft=[T]), "prune") == [loser]
    assert gossip.score(peer(loser), 8.0) < -10.0, "so soon after a prune each counts twice"


def test_a_full_mesh_takes_a_peer_that_we_dialled_and_shrinks_at_the_heartbeat() -> None:
    gossip = meshed(16, dialled=3)
    for number in range(1, 17):
        said(gossip, number, graft=[T])
    assert len(members(gossip)) == 15
    assert {14, 15, 16} <= set(members(gossip))
    outputs = gossip.poll(1.0)
    assert len(sends(outputs, "prune")) == 9
    assert len(members(gossip)) == 6
    assert len({14, 15, 16} & set(members(gossip))) >= 2, "some that we dialled stay"


def test_the_best_stay_in_a_mesh_that_shrinks() -> None:
    gossip = meshed(16, dialled=4)
    for number in range(1, 17):
        said(gossip, number, graft=[T])
    for number in (2, 3, 5, 7):
        appraise(gossip, number, 5.0)
    gossip.poll(1.0)
    assert {2, 3, 5, 7} <= set(members(gossip))
    assert len(members(gossip)) == 6


def test_a_mesh_without_peers_that_we_dialled_gets_some() -> None:
    gossip = meshed(9, dialled=2)
    assert members(gossip) == [1, 2, 3, 4, 5, 6]
    assert sends(gossip.poll(1.0), "graft") == [8, 9]


def test_now_and_then_a_poor_mesh_takes_better_peers_in() -> None:
    gossip = meshed(10)
    for number in (8, 9, 10):
        appraise(gossip, number, 3.0)
    grafted = [sends(gossip.poll(float(beat)), "graft") for beat in range(1, 61)]
    assert grafted[:59] == [[]] * 59
    assert len(grafted[59]) == 2
    assert set(grafted[59]) <= {8, 9, 10}
    content = meshed(10)
    for number in range(1, 11):
        appraise(content, number, 2.0 + number)
    assert all(not sends(content.poll(float(beat)), "graft") for beat in range(1, 61))


def test_who_shares_an_address_with_too_many_is_not_grafted() -> None:
    gossip = Gossip(peer(0), SeededRandom(1))
    gossip.receive(Subscribe(T), 0.0)
    for number in range(1, 30):
        gossip.receive(PeerConnected(peer(number), address="192.0.2.1" if number < 28 else None), 0.0)
    for number in range(1, 30):
        said(gossip, number, subscribe=[[T, True]])
    assert members(gossip) == [28, 29]
    gossip.receive(Publish(T, b"hello"), 0.5)
    assert len(sends(gossip.poll(1.0), "ihave")) == 9, "but they hear what there is"


# -- asking ------------------------------------------------------------------------------------------


def test_a_broken_word_is_noticed_and_another_is_asked() -> None:
    gossip = meshed(2)
    said(gossip, 1, ihave=[[T, [ID]]])
    assert said(gossip, 2, 0.1, ihave=[[T, [ID]]]) == []
    assert sends(gossip.poll(1.0), "iwant") == [2]
    assert said(gossip, 2, 1.1, publish=[[T, b"hello"]]) == [Validate(ID, T, b"hello", peer(2))]
    for beat in range(2, 40):
        said(gossip, 1, float(beat), ihave=[[T, [bytes([beat]) * 32]]])
        gossip.poll(float(beat))
    assert gossip.score(peer(1), 40.0) < GossipConfig().score.publish_threshold
    assert gossip.score(peer(2), 40.0) >= 0


def test_a_peer_that_tells_ids_all_the_time_is_not_heard() -> None:
    gossip = meshed(1)
    answers = [len(said(gossip, 1, ihave=[[T, [bytes([n]) * 32]]])) for n in range(12)]
    assert answers == [1] * 10 + [0, 0]
    gossip.poll(1.0)
    assert len(said(gossip, 1, 1.0, ihave=[[T, [bytes([99]) * 32]]])) == 1


def test_who_missed_frames_hears_the_ids_even_in_the_mesh() -> None:
    gossip = meshed(2)
    gossip.receive(Publish(T, b"hello"), 0.1)
    assert gossip.poll(1.0) == []
    gossip.receive(FramesDropped(peer(1)), 1.1)
    assert gossip.poll(2.0) == [SendFrame(peer(1), {"ihave": [[T, [ID]]]})]
    assert gossip.poll(3.0) == [], "once"


def test_who_comes_into_the_mesh_hears_what_came_before() -> None:
    gossip = meshed(20)
    gossip.poll(1.0)
    gossip.receive(Publish(T, b"hello"), 1.1)
    outside = [n for n in range(1, 21) if n not in members(gossip)]
    for now in (2.0, 3.0, 4.0):
        told = sends(gossip.poll(now), "ihave")
        late = next(n for n in outside if n not in told)
        if now == 2.0:
            said(gossip, late, 2.5, graft=[T])
            newcomer = late
        if now == 3.0:
            assert newcomer in told


def test_each_peer_outside_the_mesh_has_its_turn_whoever_comes_and_goes() -> None:
    gossip = meshed(30)
    gossip.receive(Publish(T, b"hello"), 0.1)
    outside = {n for n in range(1, 31) if n not in members(gossip)}
    told: set[int] = set()
    for beat in (1.0, 2.0, 3.0):
        told |= set(sends(gossip.poll(beat), "ihave"))
        gossip.receive(PeerGone(peer(int(beat))), beat)
    assert outside <= told


def test_what_could_not_be_judged_may_come_again() -> None:
    gossip = meshed(2)
    said(gossip, 1, publish=[[T, b"hello"]])
    assert gossip.receive(Validated(ID, Verdict.LATER), 0.1) == []
    assert said(gossip, 2, 0.2, ihave=[[T, [ID]]]) == [SendFrame(peer(2), {"iwant": [ID]})]
    assert said(gossip, 2, 0.3, publish=[[T, b"hello"]]) == [Validate(ID, T, b"hello", peer(2))]


# -- IDONTWANT ---------------------------------------------------------------------------------------


def test_a_large_message_is_told_to_the_mesh_before_it_is_judged() -> None:
    gossip = meshed(4)
    outputs = said(gossip, 1, publish=[[T, LARGE]])
    assert outputs[0] == Validate(LARGE_ID, T, LARGE, peer(1))
    assert outputs[1:] == [SendFrame(peer(n), {"idontwant": [LARGE_ID]}) for n in (2, 3, 4)]
    assert sends(said(gossip, 1, publish=[[T, b"small"]]), "idontwant") == []


def test_a_message_does_not_go_to_who_has_it() -> None:
    gossip = meshed(4)
    said(gossip, 1, publish=[[T, LARGE]])
    said(gossip, 3, 0.1, idontwant=[LARGE_ID])
    assert sends(gossip.receive(Validated(LARGE_ID, Verdict.ACCEPT), 0.2), "publish") == [2, 4]
    assert len(said(gossip, 3, 0.3, iwant=[LARGE_ID])) == 1, "unless it asks after all"


def test_what_peers_have_is_forgotten_and_bounded() -> None:
    gossip = meshed(2, attrs.evolve(GossipConfig(), max_unwanted=2))
    said(gossip, 2, idontwant=[bytes([n]) * 32 for n in range(2)])
    said(gossip, 2, idontwant=[ID])
    said(gossip, 1, publish=[[T, b"hello"]])
    assert sends(gossip.receive(Validated(ID, Verdict.ACCEPT), 0.1), "publish") == [2], (
        "at the limit: not kept"
    )
    for beat in (1.0, 2.0, 3.0):
        gossip.poll(beat)
    other = message_id(T, b"other")
    said(gossip, 2, 3.1, idontwant=[other])
    said(gossip, 1, 3.1, publish=[[T, b"other"]])
    assert sends(gossip.receive(Validated(other, Verdict.ACCEPT), 3.2), "publish") == []


# -- a mesh that does not answer ---------------------------------------------------------------------


def taken(gossip: Gossip, number: int, payload: bytes, now: float) -> None:
    """A peer sends a good message."""
    said(gossip, number, now, publish=[[T, payload]])
    gossip.receive(Validated(message_id(T, payload), Verdict.ACCEPT, peer(99)), now)


def test_without_an_echo_everybody_else_hears_of_a_message_at_once() -> None:
    gossip = meshed(40)
    mesh = members(gossip)
    taken(gossip, mesh[0], b"hello", 0.1)
    assert gossip.next_timeout() == pytest.approx(0.35)
    told = sends(gossip.poll(0.35), "ihave")
    assert told == [number for number in range(1, 41) if number not in mesh]
    assert gossip.poll(0.7) == [], "once"


def test_with_an_echo_others_hear_of_it_in_turn() -> None:
    gossip = meshed(40)
    mesh = members(gossip)
    taken(gossip, mesh[0], b"hello", 0.1)
    outside = next(number for number in range(1, 41) if number not in mesh)
    said(gossip, outside, 0.2, publish=[[T, b"hello"]])
    assert gossip.next_timeout() == pytest.approx(0.35), "it is not of the mesh"
    said(gossip, mesh[1], 0.2, publish=[[T, b"hello"]])
    assert gossip.next_timeout() == 1.0
    assert 0 < len(sends(gossip.poll(1.0), "ihave")) <= 14


def test_that_a_peer_wants_no_copy_is_an_echo() -> None:
    gossip = meshed(40)
    mesh = members(gossip)
    taken(gossip, mesh[0], LARGE, 0.1)
    said(gossip, mesh[1], 0.2, idontwant=[LARGE_ID])
    assert gossip.next_timeout() == 1.0


def test_who_had_to_be_asked_is_grafted_where_the_mesh_is_deaf() -> None:
    gossip = meshed(40)
    helper = next(number for number in range(1, 41) if number not in members(gossip))
    assert sends(said(gossip, helper, 0.1, ihave=[[T, [ID]]]), "iwant") == [helper]
    taken(gossip, helper, b"hello", 0.2)
    assert sends(gossip.poll(0.45), "graft") == [helper]
    assert helper in members(gossip)


def test_who_only_flooded_its_own_message_is_not_grafted() -> None:
    gossip = meshed(40)
    origin = next(number for number in range(1, 41) if number not in members(gossip))
    taken(gossip, origin, b"hello", 0.2)
    assert sends(gossip.poll(0.45), "graft") == []


def test_a_full_mesh_takes_in_one_more_and_mends_itself() -> None:
    gossip = meshed(40)
    for number in range(1, 41):
        if len(members(gossip)) < 12:
            said(gossip, number, graft=[T])
    full = members(gossip)
    helpers = [number for number in range(1, 41) if number not in full][:2]
    for helper, payload in zip(helpers, (b"one", b"two"), strict=True):
        said(gossip, helper, 0.1, ihave=[[T, [message_id(T, payload)]]])
        taken(gossip, helper, payload, 0.2)
    assert sends(gossip.poll(0.45), "graft") == helpers[:1]
    assert len(full) + 1 == len(members(gossip)) == 13
    gossip.poll(1.0)
    assert len(members(gossip)) == 6
    assert helpers[0] in members(gossip), "for it has been of use"
