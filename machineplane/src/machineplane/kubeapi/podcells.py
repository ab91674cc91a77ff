"""The cells of a pod's row, and ages: the words and their order are those that kubectl's users read every
day."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]
Cell = str | int


def age(timestamp: str | None, now: float) -> str:
    """How long ago an RFC 3339 time was, e.g. ``5m3s``; ``<unknown>`` without one."""
    return human_duration(now - _seconds(timestamp)) if timestamp else "<unknown>"


def ago(timestamp: str | None, now: float) -> str:
    """`` (5m3s ago)`` or nothing."""
    return f" ({age(timestamp, now)} ago)" if timestamp else ""


def _seconds(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def human_duration(seconds: float) -> str:
    """A duration in at most two units, the finer the shorter it is, as ``kubectl get`` writes it."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    years, day_of_year = days // 365, days % 365
    if total < 120:
        return f"{max(total, 0)}s"
    if minutes < 10:
        return _two(minutes, "m", total % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if years < 2:
        return f"{days}d"
    return _two(years, "y", day_of_year, "d") if years < 8 else f"{years}y"


def _two(first: int, unit: str, second: int, finer: str) -> str:
    return f"{first}{unit}{second}{finer}" if second else f"{first}{unit}"


def _statuses(pod: Object, which: str = "containerStatuses") -> list[Mapping[str, Any]]:
    return list((pod.get("status") or {}).get(which) or ())


def ready(pod: Object, now: float) -> Cell:
    """``1/2``: ready containers of all."""
    good = sum(1 for item in _statuses(pod) if item.get("ready") and "running" in (item.get("state") or {}))
    return f"{good}/{len(pod['spec'].get('containers') or ())}"


def restarts(pod: Object, now: float) -> Cell:
    """``3 (2m ago)``: restarts of all containers, and when the last was."""
    items = _statuses(pod) + _statuses(pod, "initContainerStatuses")
    count = sum(int(item.get("restartCount", 0)) for item in items)
    ends = [((item.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for item in items]
    latest = max((end for end in ends if end), default=None)
    return f"{count}{ago(latest, now) if count else ''}"


def status(pod: Object, now: float) -> Cell:
    """The one word for what goes on: a container's trouble before the phase, Terminating before all."""
    state = pod.get("status") or {}
    word = state.get("reason") or state.get("phase") or "Unknown"
    word = _init_word(pod) or _container_word(pod) or word
    if pod["metadata"].get("deletionTimestamp"):
        return "Unknown" if state.get("reason") == "NodeLost" else "Terminating"
    return str(word)


def _init_word(pod: Object) -> str | None:
    items = _statuses(pod, "initContainerStatuses")
    for index, item in enumerate(items):
        state = item.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended is not None and ended.get("exitCode") == 0:
            continue
        if ended is not None:
            return f"Init:{_ended_word(ended)}"
        if waiting is not None and waiting.get("reason", "") not in ("", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{len(items)}"
    return None


def _container_word(pod: Object) -> str | None:
    word, running = None, False
    for item in reversed(_statuses(pod)):
        state = item.get("state") or {}
        if reason := (state.get("waiting") or {}).get("reason"):
            word = reason
        elif (ended := state.get("terminated")) is not None:
            word = _ended_word(ended)
        elif item.get("ready") and "running" in state:
            running = True
    if word == "Completed" and running:
        return "Running"
    return word


def _ended_word(ended: Mapping[str, Any]) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


def address(pod: Object, now: float) -> Cell:
    """The pod's IP address."""
    return str((pod.get("status") or {}).get("podIP") or "<none>")


def node(pod: Object, now: float) -> Cell:
    """The machine it runs on."""
    return str(pod["spec"].get("nodeName") or "<none>")


def nominated(pod: Object, now: float) -> Cell:
    """The machine that preemption has chosen for it."""
    return str((pod.get("status") or {}).get("nominatedNodeName") or "<none>")


def gates(pod: Object, now: float) -> Cell:
    """``1/2`` readiness gates, or none."""
    wanted = [gate.get("conditionType") for gate in pod["spec"].get("readinessGates") or ()]
    conditions = (pod.get("status") or {}).get("conditions") or ()
    true = [item for item in conditions if item.get("type") in wanted and item.get("status") == "True"]
    return f"{len(true)}/{len(wanted)}" if wanted else "<none>"
