"""What to do next for a StatefulSet: which ordinals to tender, which pods to retire. Pure.

An ordinal has one pod. It is tendered only where no pod of it is left, not even one that is ending; of several (two sides
of a partition ran one each) one is kept. The rules beyond are Kubernetes': ``OrderedReady`` goes one by one, upwards and
waiting for Ready, and downwards from the highest; ``Parallel`` does all at once; a new template replaces one pod at a time
from the highest ordinal down to the partition, while all others are ready. Unlike there, an outdated pod that is not ready
is replaced first: else a template that never gets ready could not be corrected.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from machineplane.fabric.plan import Plan, PodFact, worth_keeping

ORDINALS = 1 << 31  # technical-spec, Award: an ordinal has 31 bits
MANAGEMENT = ("OrderedReady", "Parallel")
STRATEGIES = ("RollingUpdate", "OnDelete")


@frozen
class OrdinalWish:
    """What a StatefulSet asks for: ``replicas`` ordinals from ``start`` on. Ordinals below ``partition`` (counted from
    ``start``) keep the template they have, all do with ``on_delete``."""

    replicas: int
    template_hash: str
    start: int = 0
    parallel: bool = False
    partition: int = 0
    on_delete: bool = False

    @property
    def ordinals(self) -> range:
        return range(self.start, self.start + self.replicas)

    def outdated(self, pod: PodFact) -> bool:
        """Whether a pod that is kept is to be replaced for its template."""
        below = pod.ordinal is not None and pod.ordinal < self.start + self.partition
        return not (self.on_delete or below or pod.template_hash == self.template_hash)


def plan_ordinals(wish: OrdinalWish, pods: Iterable[PodFact]) -> Plan:
    """Deterministic for the same wish and pods in any order."""
    facts = sorted(pods, key=worth_keeping)
    keep, retire = _sort_out(facts)
    left = {p.ordinal for p in facts}
    missing = [n for n in wish.ordinals if n not in left]
    wanted = [keep[n] for n in wish.ordinals if n in keep]
    surplus = [keep[n] for n in sorted(keep, reverse=True) if n not in wish.ordinals]
    ending = any(p.terminating for p in facts)
    if not wish.parallel:
        missing = _next_in_order(wish, keep, missing)
        whole = len(wanted) == wish.replicas and all(p.ready for p in wanted)
        surplus = surplus[:1] if whole and not ending else []
    retire += surplus
    if not (retire or missing or ending):
        retire = _roll(wish, wanted)
    return Plan(len(missing), tuple(p.uid for p in retire), tuple(missing))


def _sort_out(facts: Sequence[PodFact]) -> tuple[dict[int, PodFact], list[PodFact]]:
    """The pod to keep of each ordinal, and those that go whatever is wished for: duplicates, and what has ended."""
    keep: dict[int, PodFact] = {}
    others = []
    for pod in facts:
        if pod.terminating:
            continue
        if pod.failed or pod.finished or pod.ordinal is None or pod.ordinal in keep:
            others.append(pod)
        else:
            keep[pod.ordinal] = pod
    return keep, others


def _next_in_order(wish: OrdinalWish, keep: Mapping[int, PodFact], missing: Sequence[int]) -> list[int]:
    """The lowest ordinal that is not there, if it can be tendered and all below it are ready."""
    for ordinal in wish.ordinals:
        if ordinal not in keep:
            return [ordinal] if ordinal in missing else []
        if not keep[ordinal].ready:
            break
    return []


def _roll(wish: OrdinalWish, wanted: Sequence[PodFact]) -> list[PodFact]:
    outdated = [p for p in reversed(wanted) if wish.outdated(p)]
    broken = [p for p in outdated if not p.ready]
    if broken:
        return broken[:1]
    return outdated[:1] if all(p.ready for p in wanted) else []


def ordinal_wish_of(replicas: int, spec: Mapping[str, Any], template_hash: str) -> OrdinalWish:
    """The wish behind a StatefulSet's ``spec``. Raises ValueError."""
    strategy = _object(spec, "updateStrategy")
    start = _count(_object(spec, "ordinals"), "start")
    if start + replicas > ORDINALS:
        raise ValueError(
            f"spec.ordinals.start {start} with {replicas} replicas is beyond the highest ordinal"
        )
    return OrdinalWish(
        replicas,
        template_hash,
        start=start,
        parallel=_choice(spec, "podManagementPolicy", MANAGEMENT) == "Parallel",
        partition=_count(_object(strategy, "rollingUpdate"), "partition"),
        on_delete=_choice(strategy, "type", STRATEGIES) == "OnDelete",
    )


def _object(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = spec.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value or {}


def _count(spec: Mapping[str, Any], name: str) -> int:
    value = spec.get(name) or 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < ORDINALS:
        raise ValueError(f"{name} {value!r} is not a count")
    return value


def _choice(spec: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    value = spec.get(name) or known[0]
    if value not in known:
        raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
    return str(value)
