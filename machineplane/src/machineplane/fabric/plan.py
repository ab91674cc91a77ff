"""What to do next for one workload: how many pods to tender, which to retire. Pure.

The rules are a Deployment's: pods of the current template replace those of older ones within ``maxSurge`` and
``maxUnavailable`` (default 25 %, surge rounded up, unavailable rounded down; ``Recreate`` retires first). What is
missing is tendered; what is too many goes in the order: failed, not ready, newest.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen


@frozen
class PodFact:
    """What the planner needs to know of a pod that runs somewhere in the fabric. ``created`` in ms since the epoch."""

    uid: str
    template_hash: str
    created: int
    ready: bool
    failed: bool = False
    finished: bool = False
    terminating: bool = False
    ordinal: int | None = None


@frozen
class Wish:
    """What a manifest asks for. ``surge`` and ``unavailable`` are counts of pods; ``keep_finished``: pods that end well or
    badly are results to be kept (a Pod that is not restarted), not losses to be made good."""

    replicas: int
    template_hash: str
    surge: int
    unavailable: int
    recreate: bool = False
    keep_finished: bool = False


@frozen
class Plan:
    """How many pods to tender (a StatefulSet's: which ``ordinals``, one a pod), and the uids of those to retire."""

    tender: int
    retire: tuple[str, ...]
    ordinals: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        return not self.tender and not self.retire


def plan(wish: Wish, pods: Iterable[PodFact]) -> Plan:
    """Deterministic for the same wish and pods in any order."""
    alive = sorted((p for p in pods if not p.terminating), key=worth_keeping)
    failed = [p for p in alive if p.failed and not wish.keep_finished]
    current = [p for p in alive if p.template_hash == wish.template_hash and p not in failed]
    old = [p for p in alive if p.template_hash != wish.template_hash and p not in failed]
    surplus = current[wish.replicas :]
    current = current[: wish.replicas]
    retire = [*failed, *surplus, *_retire_old(wish, current, old)]
    return Plan(_tender(wish, current, old), tuple(p.uid for p in retire))


def worth_keeping(pod: PodFact) -> tuple[bool, int, str]:
    """A sort key: ready before not ready, then the oldest."""
    return (not (pod.ready or pod.finished), pod.created, pod.uid)


def _tender(wish: Wish, current: Sequence[PodFact], old: Sequence[PodFact]) -> int:
    missing = wish.replicas - len(current)
    if wish.recreate:
        return 0 if old else missing
    room = wish.replicas + wish.surge - len(current) - len(old)
    return max(0, min(missing, room))


def _retire_old(wish: Wish, current: Sequence[PodFact], old: Sequence[PodFact]) -> list[PodFact]:
    if wish.recreate or (len(current) >= wish.replicas and all(p.ready for p in current)):
        return list(old)
    useless = [p for p in old if not p.ready]
    ready_old = [p for p in old if p.ready]
    ready = len(ready_old) + sum(p.ready for p in current)
    spare = max(0, ready - (wish.replicas - wish.unavailable))
    return [*useless, *reversed(ready_old[len(ready_old) - min(spare, len(ready_old)) :])]


def wish_of(kind: str, replicas: int, spec: Mapping[str, Any], template_hash: str) -> Wish:
    """The wish behind a manifest's ``spec``. Percentages are of ``replicas``. Raises ValueError."""
    if kind == "Pod":
        return Wish(
            replicas, template_hash, 0, 0, keep_finished=spec.get("restartPolicy", "Always") != "Always"
        )
    strategy = _object(spec.get("strategy"), "strategy")
    rolling = _object(strategy.get("rollingUpdate"), "rollingUpdate")
    surge = _count(rolling.get("maxSurge", "25%"), replicas, round_up=True)
    unavailable = _count(rolling.get("maxUnavailable", "25%"), replicas, round_up=False)
    if not surge and not unavailable:
        unavailable = 1  # as Kubernetes does: otherwise nothing could ever move
    return Wish(replicas, template_hash, surge, unavailable, recreate=strategy.get("type") == "Recreate")


def _object(value: object, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value or {}


def _count(value: object, replicas: int, *, round_up: bool) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d{1,6})%", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is neither a count nor a percentage")
    return (int(match[1]) * replicas + (99 if round_up else 0)) // 100
