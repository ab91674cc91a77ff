"""The parts without I/O: arbitration, dial plan, connection policy, addresses, outbox, roster, configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from magik_mesh import ConfigError, MeshLimits, PeerDown, PeerInfo, PeerUp, Stats, Timings
from magik_mesh.addresses import OwnAddresses, parse, plain_host, text_of
from magik_mesh.arbitration import Answer, Standing, answer_hello
from magik_mesh.dialing import DialPlan, backoff
from magik_mesh.links import Link, LinkTable
from magik_mesh.pubsub import Outbox, site_of
from magik_mesh.relay_socket import PREFIX
from magik_mesh.roster import Roster
from magik_mesh.testing import bootstrap_to, config_of, identity_of
from magik_proto.identity import PeerId

SMALL, LARGE = sorted((identity_of(1).peer_id, identity_of(2).peer_id))
TIMINGS = Timings()


def answer(
    me: PeerId, peer: PeerId, offered: Standing, current: Standing | None = None, **also: bool
) -> Answer:
    options = {"my_hello_sent": False, "room": True, **also}
    return answer_hello(me, peer, offered, current, **options)


class TestArbitration:
    def test_the_first_is_taken_while_there_is_room(self) -> None:
        assert answer(SMALL, LARGE, Standing(1, 0)) is Answer.TAKE
        assert answer(SMALL, LARGE, Standing(1, 0), room=False) is Answer.FULL

    def test_of_two_at_once_both_ends_keep_the_one_dialled_by_the_smaller(self) -> None:
        assert answer(SMALL, LARGE, Standing(1, 0), my_hello_sent=True) is Answer.DUPLICATE
        assert answer(LARGE, SMALL, Standing(1, 0), my_hello_sent=True) is Answer.TAKE

    def test_a_hello_written_before_the_present_one_was_taken_is_late(self) -> None:
        assert answer(SMALL, LARGE, Standing(1, 4), Standing(1, 5)) is Answer.DUPLICATE

    def test_a_hello_written_after_it_means_that_the_peer_lost_it(self) -> None:
        assert answer(SMALL, LARGE, Standing(1, 5), Standing(1, 5)) is Answer.TAKE
        assert answer(SMALL, LARGE, Standing(1, 5), Standing(1, 5), room=False) is Answer.TAKE

    def test_another_start_of_the_peer_replaces(self) -> None:
        assert answer(SMALL, LARGE, Standing(2, 0), Standing(1, 5)) is Answer.TAKE_RESTARTED


class TestBackoff:
    def test_it_doubles_up_to_the_cap_and_jitter_only_shortens(self) -> None:
        delays = [backoff(attempt, TIMINGS, 0.0) for attempt in range(1, 9)]
        assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
        assert backoff(3, TIMINGS, 0.999) == pytest.approx(0.4, abs=0.01)
        assert backoff(10**6, TIMINGS, 0.0) == 5.0


class TestDialPlan:
    def plan(self) -> DialPlan:
        return DialPlan(TIMINGS, lambda: 0.0)

    def test_a_new_peer_is_due_at_once_and_dialled_once(self) -> None:
        plan = self.plan()
        plan.want(SMALL, 0.0)
        assert plan.take_due(0.0, 8) == [SMALL]
        assert plan.take_due(0.0, 8) == []

    def test_no_more_than_there_is_room_for(self) -> None:
        plan = self.plan()
        plan.want(LARGE, 0.0)
        plan.want(SMALL, 1.0)
        assert plan.take_due(1.0, 1) == [LARGE]
        assert plan.take_due(1.0, -3) == []

    def test_who_stays_away_is_forgotten_after_a_minute_but_for_bootstrap_peers(self) -> None:
        plan = self.plan()
        plan.want(SMALL, 0.0)
        plan.want(LARGE, 0.0, permanent=True)
        assert plan.put_off(SMALL, 59.0).retry_in == 0.2
        assert plan.put_off(SMALL, 60.0).retry_in is None
        assert plan.put_off(LARGE, 10_000.0).retry_in == 0.2
        assert plan.wanted() == (LARGE,)

    def test_logging_thins_out(self) -> None:
        plan = self.plan()
        plan.want(SMALL, 0.0, permanent=True)
        told = [n for n in range(1, 1001) if plan.put_off(SMALL, 0.0).worth_logging]
        assert told == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]

    def test_a_lost_connection_is_redialled_at_once_one_that_did_not_last_is_not(self) -> None:
        plan = self.plan()
        plan.linked(SMALL, 0.0)
        assert plan.next_due() is None
        plan.lost(SMALL, 100.0, lasted=100.0)
        assert plan.next_due() == 100.0
        plan.lost(SMALL, 101.0, lasted=0.1)
        assert plan.next_due() == 101.2

    def test_a_goodbye_ends_it(self) -> None:
        plan = self.plan()
        plan.linked(SMALL, 0.0)
        plan.left(SMALL, 1.0)
        assert plan.next_due() is None
        assert not plan.is_wanted(SMALL)


def link(
    seed: int, *, last_used: float = 0.0, calls: int = 0, useful: bool = False, since: float = 0.0
) -> Link:
    admitted = SimpleNamespace(peer=identity_of(seed).peer_id, roles=frozenset())
    unused = cast(Any, None)
    slots, outbox = SimpleNamespace(used=0), SimpleNamespace(useful=useful)
    return Link(
        cast(Any, admitted), unused, unused, cast(Any, outbox), cast(Any, slots), since, 0, last_used, calls
    )


class TestLinkTable:
    def test_own_dials_leave_a_quarter_for_others(self) -> None:
        table = LinkTable(8)
        for seed in range(5):
            table.put(link(seed))
        assert table.room_for_dials(0) == 1
        assert table.room_for_dials(1) == 0

    def test_when_full_only_those_who_have_few_are_taken_and_the_least_used_goes(self) -> None:
        table = LinkTable(4)
        for seed in range(4):
            table.put(link(seed, last_used=10.0 - seed, calls=1 if seed == 3 else 0))
        assert not table.has_room_for(1)
        assert table.has_room_for(0)
        spare = table.spare()
        assert spare is not None
        assert spare.peer == identity_of(2).peer_id

    def test_who_brought_news_stays_and_the_strangers_go(self) -> None:
        table = LinkTable(3)
        for seed in range(3):
            table.put(link(seed, last_used=10.0 + seed, useful=seed < 2))
        spare = table.spare()
        assert spare is not None
        assert spare.peer == identity_of(2).peer_id  # though it was used last

    def test_a_crowd_of_newcomers_displaces_itself(self) -> None:
        table = LinkTable(3)
        for seed in range(3):
            table.put(link(seed, since=float(seed)))
        spare = table.spare()
        assert spare is not None
        assert spare.peer == identity_of(2).peer_id

    def test_for_a_dial_of_ours_goes_who_matters_less(self) -> None:
        table = LinkTable(2, frozenset(identity_of(seed).peer_id for seed in (0, 7)))
        chosen, other = identity_of(7).peer_id, identity_of(8).peer_id
        for seed in range(2):
            table.put(link(seed))
        spare = table.spare_for(chosen, urgent=False)
        assert spare is not None
        assert spare.peer == identity_of(1).peer_id
        assert table.spare_for(other, urgent=True) is spare
        assert table.spare_for(other, urgent=False) is None
        table.remove(spare)
        assert table.spare_for(chosen, urgent=False) is None, "one that was chosen, for another"
        assert table.spare_for(other, urgent=True) is not None

    def test_nobody_is_spared_for_a_newcomer_while_all_are_busy(self) -> None:
        table = LinkTable(2)
        for seed in range(2):
            table.put(link(seed, calls=1))
        assert not table.has_room_for(0)
        assert table.spare_for(identity_of(9).peer_id, urgent=True) is None

    def test_a_replaced_one_does_not_take_its_successor_along(self) -> None:
        table = LinkTable(2)
        old, new = link(1), link(1)
        table.put(old)
        table.put(new)
        assert not table.remove(old)
        assert table.get(new.peer) is new


class TestAddresses:
    def test_text_and_pair(self) -> None:
        for text in ("192.0.2.1:4001", "[2001:db8::1]:4001"):
            assert text_of(parse(text)) == text
        assert plain_host("::ffff:192.0.2.1") == "192.0.2.1"

    def test_explicit_ones_end_the_matter(self) -> None:
        own = OwnAddresses(("0.0.0.0", 4001), (("203.0.113.5", 4001),))
        assert not own.seen_as(("192.0.2.1", 5))
        assert own.current() == (("203.0.113.5", 4001),)

    def test_a_wildcard_learns_and_loopback_comes_last(self) -> None:
        own = OwnAddresses(("0.0.0.0", 4001))
        assert own.current() == ()
        assert own.reached_from("127.0.0.1")
        assert own.reached_from("10.1.1.1")
        assert not own.reached_from("10.1.1.1")
        assert own.current() == (("10.1.1.1", 4001), ("127.0.0.1", 4001))

    def test_liars_cannot_push_a_right_address_out(self) -> None:
        own = OwnAddresses(("0.0.0.0", 4001))
        own.reached_from("10.1.1.1")
        for number in range(100):
            own.seen_as((f"192.0.2.{number}", 1))
        assert own.current()[0] == ("10.1.1.1", 4001)
        assert len(own.current()) == 3

    def test_what_cannot_be_dialled_is_not_said(self) -> None:
        own = OwnAddresses(("0.0.0.0", 4001))
        for host in ("0.0.0.0", "224.0.0.1", "255.255.255.255"):
            assert not own.seen_as((host, 4001))


class TestOutbox:
    def box(self, frames: int) -> Outbox:
        return Outbox(MeshLimits(gossip_frames=frames), Stats())

    async def test_the_oldest_message_goes_and_control_stays(self) -> None:
        box = self.box(2)
        box.put(b"subscribe", droppable=False)
        box.put(b"old", droppable=True)
        box.put(b"new", droppable=True)
        assert await box.take() == b"subscribenew"
        assert (box.stats.gossip_dropped, box.overflowed) == (1, False)

    def test_a_box_full_of_control_gives_the_peer_up(self) -> None:
        box = self.box(2)
        for _ in range(3):
            box.put(b"graft", droppable=False)
        assert box.overflowed


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        (PREFIX + "7", None),
    ],
)
def test_who_shares_a_site(host: str, site: str | None) -> None:
    assert site_of((host, 4001)) == site


class TestRoster:
    def info(self, peer: PeerId) -> PeerInfo:
        return PeerInfo(peer, None, frozenset(), connected=True, since=0)

    def test_who_subscribes_late_hears_of_all_who_are_up(self) -> None:
        roster = Roster(8)
        roster.up(self.info(SMALL))
        roster.up(self.info(SMALL))
        events = roster.subscribe()
        roster.down(LARGE, "never was there")
        roster.down(SMALL, "lost")
        assert events.receive_nowait() == PeerUp(self.info(SMALL))
        assert events.receive_nowait() == PeerDown(SMALL, "lost")
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()

    def test_who_does_not_read_is_cut_off_and_the_others_are_not(self) -> None:
        roster = Roster(2)
        sleeper, reader = roster.subscribe(), roster.subscribe()
        for _ in range(3):
            roster.up(self.info(SMALL))
            roster.down(SMALL, "lost")
            reader.receive_nowait()
            reader.receive_nowait()
        for _ in range(2):
            sleeper.receive_nowait()
        with pytest.raises(trio.EndOfChannel):
            sleeper.receive_nowait()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"host": "example.org"}, "mesh address"),
        ({"port": 70_000}, "port"),
        ({"advertise": ("10.0.0.1",)}, "10.0.0.1"),
        ({"max_connections": 1}, "max_connections"),
        ({"plane": ""}, "plane"),
        ({"limits": MeshLimits(known_peers=127)}, "known_peers"),
        ({"bootstrap": bootstrap_to(1)}, "--bootstrap-peer"),
    ],
)
def test_a_configuration_that_cannot_work_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_of(1, **changes)
