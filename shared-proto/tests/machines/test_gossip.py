"""Gossip, frame by frame."""

from typing import Any

import pytest

from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.gossip import (
    Deliver,
    FrameReceived,
    Gossip,
    GossipConfig,
    GossipOutput,
    Misbehaved,
    PeerConnected,
    PeerGone,
    Publish,
    SendFrame,
    Subscribe,
    Unsubscribe,
    Validate,
    Validated,
    Verdict,
)
from magik_proto.gossip_frames import message_id
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

T = "magik-fabric"
ID = message_id(T, b"hello")


def said(gossip: Gossip, number: int, now: float = 0.0, **frame: Any) -> list[GossipOutput]:
    return gossip.receive(FrameReceived(peer(number), frame), now)


def meshed(count: int, config: GossipConfig | None = None) -> Gossip:
    """A subscriber with `count` subscribed peers, 1 and up."""
    gossip = Gossip(peer(0), SeededRandom(1), config)
    gossip.receive(Subscribe(T), 0.0)
    for number in range(1, count + 1):
        gossip.receive(PeerConnected(peer(number)), 0.0)
        said(gossip, number, subscribe=[[T, True]])
    return gossip


def publishes(outputs: list[GossipOutput]) -> list[int]:
    return [
        int.from_bytes(o.peer.raw, "big")
        for o in outputs
        if isinstance(o, SendFrame) and "publish" in o.frame
    ]


def test_a_new_peer_hears_our_topics_and_is_grafted_when_it_subscribes() -> None:
    gossip = Gossip(peer(0), SeededRandom(1))
    assert gossip.next_timeout() is None
    gossip.receive(Subscribe(T), 0.0)
    assert gossip.next_timeout() == 1.0
    assert gossip.receive(PeerConnected(peer(1)), 0.0) == [SendFrame(peer(1), {"subscribe": [[T, True]]})]
    assert said(gossip, 1, subscribe=[[T, True]]) == [SendFrame(peer(1), {"graft": [T]})]
    assert gossip.mesh(T) == gossip.subscribers(T) == (peer(1),)


def test_a_subscription_is_told_to_all_and_grafts_at_once() -> None:
    gossip = Gossip(peer(0), SeededRandom(1))
    gossip.receive(PeerConnected(peer(1)), 0.0)
    assert said(gossip, 1, subscribe=[[T, True]]) == []
    assert gossip.receive(Subscribe(T), 0.0) == [
        SendFrame(peer(1), {"subscribe": [[T, True]]}),
        SendFrame(peer(1), {"graft": [T]}),
    ]
    assert gossip.receive(Subscribe(T), 0.0) == []


def test_an_own_message_goes_to_every_subscriber_before_any_heartbeat() -> None:
    gossip = meshed(20)
    assert len(gossip.mesh(T)) == 6
    outputs = gossip.receive(Publish(T, b"hello"), 0.1)
    assert sorted(publishes(outputs)) == list(range(1, 21))
    assert gossip.receive(Publish(T, b"hello"), 0.2) == []


def test_what_was_published_before_a_peer_subscribed_is_told_to_it() -> None:
    gossip = meshed(0)
    gossip.receive(Publish(T, b"hello"), 0.0)
    gossip.receive(PeerConnected(peer(1)), 0.1)
    assert said(gossip, 1, subscribe=[[T, True]]) == [
        SendFrame(peer(1), {"ihave": [[T, [ID]]], "graft": [T]})
    ]
    assert said(gossip, 1, iwant=[ID]) == [SendFrame(peer(1), {"publish": [[T, b"hello"]]})]


def test_a_message_is_validated_first_then_delivered_and_forwarded_once() -> None:
    gossip = meshed(4)
    assert said(gossip, 1, publish=[[T, b"hello"]]) == [Validate(ID, T, b"hello", peer(1))]
    assert said(gossip, 2, publish=[[T, b"hello"]]) == []
    outputs = gossip.receive(Validated(ID, Verdict.ACCEPT), 0.1)
    assert outputs[0] == Deliver(T, b"hello", peer(1))
    assert sorted(publishes(outputs)) == [3, 4], "not to those who sent it"
    assert said(gossip, 3, publish=[[T, b"hello"]]) == []
    assert gossip.receive(Validated(ID, Verdict.ACCEPT), 0.2) == []


def test_what_is_not_accepted_goes_nowhere() -> None:
    blamed = [Misbehaved(peer(1), "invalid message")], [Misbehaved(peer(2), "invalid message")]
    for verdict, first, second in ((Verdict.IGNORE, [], []), (Verdict.REJECT, *blamed)):
        gossip = meshed(4)
        said(gossip, 1, publish=[[T, b"hello"]])
        assert gossip.receive(Validated(ID, verdict), 0.1) == first
        assert said(gossip, 2, iwant=[ID]) == []
        assert said(gossip, 2, publish=[[T, b"hello"]]) == second, "who sends it later is no better"


def test_messages_of_other_topics_and_from_strangers_are_nothing_to_us() -> None:
    gossip = meshed(1)
    assert said(gossip, 1, publish=[["other", b"x"]], ihave=[["other", [ID]]], graft=["other"]) == []
    assert said(gossip, 7, publish=[[T, b"x"]]) == []
    gossip.receive(PeerGone(peer(1)), 0.0)
    assert said(gossip, 1, publish=[[T, b"x"]]) == []
    assert gossip.mesh(T) == ()


def test_the_heartbeat_tells_ids_to_peers_outside_the_mesh() -> None:
    gossip = meshed(10)
    gossip.receive(Publish(T, b"hello"), 0.1)
    told = [
        o.peer for o in gossip.poll(1.0) if isinstance(o, SendFrame) and o.frame == {"ihave": [[T, [ID]]]}
    ]
    assert len(told) == 4
    assert not set(told) & set(gossip.mesh(T))
    for beat in (2.0, 3.0):
        assert gossip.poll(beat) != []
    assert gossip.poll(4.0) == [], "told for three heartbeats"
    assert gossip.poll(4.5) == []
    assert gossip.next_timeout() == 5.0


def test_ids_that_lack_are_asked_of_one_peer_at_a_time() -> None:
    gossip = meshed(3)
    ask = {"iwant": [ID]}
    assert said(gossip, 1, ihave=[[T, [ID]]]) == [SendFrame(peer(1), ask)]
    assert said(gossip, 2, 0.1, ihave=[[T, [ID]]]) == []
    assert gossip.next_timeout() == 0.25
    assert gossip.poll(0.25) == [SendFrame(peer(2), ask)]
    said(gossip, 2, 0.3, publish=[[T, b"hello"]])
    assert said(gossip, 3, 9.0, ihave=[[T, [ID]]]) == []


def test_asking_and_serving_have_limits() -> None:
    gossip = meshed(2, GossipConfig(max_asked=1, max_served=2))
    other = message_id(T, b"other")
    assert said(gossip, 1, ihave=[[T, [ID, other]]]) == [SendFrame(peer(1), {"iwant": [ID]})]
    assert said(gossip, 1, ihave=[[T, [other]]]) == []
    gossip.poll(1.0)
    assert said(gossip, 1, 1.0, ihave=[[T, [other]]]) == [SendFrame(peer(1), {"iwant": [other]})]
    gossip.receive(Publish(T, b"mine"), 1.0)
    mine = message_id(T, b"mine")
    answers = [len(said(gossip, 1, 1.0, iwant=[mine])) for _ in range(3)]
    assert answers == [1, 1, 0]


def test_a_full_mesh_answers_a_graft_with_a_prune_and_keeps_its_back_off() -> None:
    gossip = meshed(13)
    full = [said(gossip, number, graft=[T]) for number in range(1, 14)]
    pruned = [o for outputs in full for o in outputs]
    assert len(gossip.mesh(T)) == 12
    assert len(pruned) == 1
    assert isinstance(pruned[0], SendFrame)
    assert pruned[0].frame == {"prune": [[T, 60]]}
    loser = pruned[0].peer
    for number in range(1, 11):
        gossip.receive(PeerGone(peer(number)), 1.0)
    assert gossip.receive(FrameReceived(loser, {"graft": [T]}), 59.0) == pruned


def test_a_pruned_peer_is_not_grafted_before_its_time() -> None:
    gossip = meshed(1)
    said(gossip, 1, prune=[[T, 30]])
    assert gossip.mesh(T) == ()
    assert gossip.poll(1.0) == []
    assert said(gossip, 1, 2.0, graft=[T]) == [SendFrame(peer(1), {"prune": [[T, 60]]})]
    assert gossip.poll(61.9) == []
    assert gossip.poll(63.0) == [SendFrame(peer(1), {"graft": [T]})]


def test_the_heartbeat_mends_a_thin_mesh() -> None:
    gossip = meshed(8)
    for number in [int.from_bytes(p.raw, "big") for p in gossip.mesh(T)][:3]:
        gossip.receive(PeerGone(peer(number)), 0.5)
    assert len(gossip.poll(1.0)) == 2
    assert len(gossip.mesh(T)) == 5


def test_unsubscribing_leaves_the_mesh() -> None:
    gossip = meshed(1)
    assert gossip.receive(Unsubscribe(T), 1.0) == [
        SendFrame(peer(1), {"subscribe": [[T, False]], "prune": [[T, 10]]})
    ]
    assert gossip.receive(Unsubscribe(T), 1.0) == []
    assert said(gossip, 1, publish=[[T, b"hello"]]) == []
    other = meshed(1)
    said(other, 1, subscribe=[[T, False]])
    assert other.mesh(T) == other.subscribers(T) == ()


def test_a_reconnected_peer_starts_anew() -> None:
    gossip = meshed(1)
    assert gossip.receive(PeerConnected(peer(1)), 1.0) == [SendFrame(peer(1), {"subscribe": [[T, True]]})]
    assert gossip.subscribers(T) == ()


def test_limits_on_pending_messages_and_topics() -> None:
    gossip = meshed(1, GossipConfig(max_pending=1))
    said(gossip, 1, publish=[[T, b"a"]])
    assert said(gossip, 1, publish=[[T, b"b"]]) == []
    gossip.receive(Validated(message_id(T, b"a"), Verdict.ACCEPT), 0.1)
    assert len(said(gossip, 1, publish=[[T, b"b"]])) == 1, "a dropped message may come again"
    said(gossip, 1, subscribe=[[f"t{n}", True] for n in range(63)])
    assert said(gossip, 1, subscribe=[["one-more", True]]) == [
        Misbehaved(peer(1), "subscribed to more than 64 topics")
    ]


def test_what_is_seen_is_forgotten_after_its_life() -> None:
    gossip = meshed(1)
    said(gossip, 1, publish=[[T, b"hello"]])
    gossip.receive(Validated(ID, Verdict.IGNORE), 0.0)
    gossip.poll(119.0)
    assert said(gossip, 1, 119.0, publish=[[T, b"hello"]]) == []
    gossip.poll(120.0)
    assert len(said(gossip, 1, 120.0, publish=[[T, b"hello"]])) == 1


def test_our_own_errors() -> None:
    gossip = meshed(1)
    for event in (Publish(T, bytes(65_537)), Publish("", b"x"), Subscribe("a" * 129), PeerConnected(peer(0))):
        with pytest.raises(LocalProtocolError):
            gossip.receive(event, 0.0)
    for number in range(63):
        gossip.receive(Subscribe(f"t{number}"), 0.0)
    with pytest.raises(LocalProtocolError, match="64 topics"):
        gossip.receive(Subscribe("one-more"), 0.0)


@pytest.mark.parametrize(
    "frame",
    [
        None,
        {"publish": {}},
        {"publish": [[T]]},
        {"publish": [[T, "text"]]},
        {"publish": [[T, bytes(65_537)]]},
        {"publish": [["", b"x"]]},
        {"publish": [["\n", b"x"]]},
        {"publish": [[T, b"x"]] * 65},
        {"subscribe": [[T, 1]]},
        {"ihave": [[T, b"x"]]},
        {"ihave": [[T, [bytes(31)]]]},
        {"iwant": [1]},
        {"iwant": [bytes(32)] * 1001},
        {"idontwant": [bytes(31)]},
        {"idontwant": [bytes(32)] * 1001},
        {"graft": [7]},
        {"prune": [[T, True]]},
        {"prune": [[T, 3601]]},
        {"prune": [[T, -1]]},
    ],
)
def test_malformed_frames_are_the_peers_error_and_change_nothing(frame: Any) -> None:
    gossip = meshed(1)
    before = (gossip.mesh(T), gossip.next_timeout())
    with pytest.raises(RemoteProtocolError, match=r"gossip\.frame"):
        gossip.receive(FrameReceived(peer(1), frame), 0.0)
    assert (gossip.mesh(T), gossip.next_timeout()) == before


def test_keys_of_later_versions_are_ignored() -> None:
    assert said(meshed(1), 1, igreet=[ID]) == []
