"""Which workloads are asked for, and when."""

from workplane.follows import Follows


def test_a_workload_is_waited_for_once_and_then_kept_fresh() -> None:
    follows = Follows()
    assert follows.use("a", 100.0)
    assert follows.due(100.0) == ["a"]
    follows.asked("a", 100.0)
    assert follows.use("a", 100.1)  # asked, and not answered
    follows.answered("a", 100.2)
    assert not follows.use("a", 100.3)
    assert follows.due(104.9) == [] and follows.next_timeout() == 105.0
    assert follows.due(105.0) == ["a"]
    follows.asked("a", 105.0)
    assert not follows.use("a", 106.0)  # the answer before will do
    assert follows.use("a", 111.0)  # not for ever


def test_what_nobody_uses_is_left_but_for_the_pinned() -> None:
    follows = Follows()
    follows.use("own", 0.0, pinned=True)
    follows.use("b", 0.0)
    assert sorted(follows.due(60.0)) == ["b", "own"]
    assert follows.due(60.1) == ["own"]
    follows.asked("own", 60.1)
    assert follows.next_timeout() == 65.1


def test_at_the_limit_the_one_not_used_for_longest_goes() -> None:
    follows = Follows(limit=3)
    follows.use("own", 0.0, pinned=True)
    for name, at in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0)):
        follows.use(name, at)
    assert sorted(follows.due(5.0)) == ["a", "c", "own"]


def test_those_asked_least_lately_come_first() -> None:
    follows = Follows()
    for name, at in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        follows.use(name, 0.0)
        follows.asked(name, at)
    assert follows.due(10.0) == ["b", "c", "a"]
