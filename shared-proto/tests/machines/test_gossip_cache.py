"""The two memories of gossip."""

from magik_proto.gossip_cache import MessageCache, SeenCache
from magik_proto.testing.builders import peer


def test_seen_ids_are_known_for_their_life() -> None:
    seen = SeenCache(10.0, 100)
    assert seen.add(b"a", 0.0)
    assert not seen.add(b"a", 5.0)
    seen.expire(9.9)
    assert b"a" in seen
    seen.expire(10.0)
    assert b"a" not in seen


def test_the_oldest_is_forgotten_at_the_cap() -> None:
    seen = SeenCache(10.0, 2)
    for key in (b"a", b"b", b"c"):
        seen.add(key, 0.0)
    assert (b"a" in seen, b"b" in seen, b"c" in seen, len(seen)) == (False, True, True, 2)


def test_messages_are_kept_for_the_history_and_told_newest_first() -> None:
    cache = MessageCache(history=3, max_bytes=100)
    cache.put(b"a", "t", b"1")
    cache.shift()
    cache.put(b"b", "t", b"2")
    cache.put(b"c", "u", b"3")
    assert cache.ids("t", 3) == [b"b", b"a"]
    assert cache.ids("t", 1) == [b"b"]
    cache.shift()
    cache.shift()
    assert cache.ids("t", 3) == [b"b"]
    assert len(cache) == 2


def test_bytes_are_capped_and_the_oldest_goes() -> None:
    cache = MessageCache(history=3, max_bytes=10)
    cache.put(b"a", "t", bytes(6))
    cache.put(b"b", "t", bytes(6))
    assert cache.take(b"a", peer(1), 3) is None
    assert cache.take(b"b", peer(1), 3) == ("t", bytes(6))
    cache.put(b"b", "t", bytes(6))
    assert len(cache) == 1


def test_each_peer_is_served_a_few_times() -> None:
    cache = MessageCache(history=3, max_bytes=10)
    cache.put(b"a", "t", b"1")
    assert [cache.take(b"a", peer(1), 2) is None for _ in range(3)] == [False, False, True]
    assert cache.take(b"a", peer(2), 2) is not None
