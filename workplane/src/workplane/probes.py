"""Probes as Kubernetes has them: what is asked, how often, and what an answer means. No I/O.

Fields and defaults are those of the v1 Probe; which probe waits for which, and what a threshold leads to, is as the
kubelet does it. A container is told to `ContainerProbes` when it runs; out come the probes that are due, and from their
results whether it is started and ready, and when it has to be restarted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field, frozen

MAX_PERIOD_S: Final = 86_400.0
"""A day; at more the probe is refused. A guess, far above what anybody asks for."""
LOOPBACK: Final = ("", "127.0.0.1", "::1", "localhost")


class ProbeError(Exception):
    """A probe that cannot be carried out; the text names container, probe and field."""


class Kind(enum.Enum):
    """The three probes of a container."""

    STARTUP = "startupProbe"
    LIVENESS = "livenessProbe"
    READINESS = "readinessProbe"


@frozen
class HttpGet:
    """2xx and 3xx are well; redirects are followed within the pod alone."""

    port: int
    path: str = "/"
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@frozen
class TcpSocket:
    """A connection that can be made is well."""

    port: int


@frozen
class Grpc:
    """The health service of gRPC, v1; SERVING is well."""

    port: int
    service: str = ""


@frozen
class Exec:
    """A command in the container; exit code 0 is well."""

    command: tuple[str, ...]


Check = HttpGet | TcpSocket | Grpc | Exec


@frozen(kw_only=True)
class Probe:
    """What is asked and when; times are seconds, thresholds are results in a row."""

    check: Check
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    successes: int = 1
    failures: int = 3


# -- reading a container's spec


def probes_of(container: Mapping[str, Any]) -> dict[Kind, Probe]:
    """The probes of a v1 Container. Raises `ProbeError`."""
    found = {kind: container.get(kind.value) for kind in Kind}
    return {kind: _probe(spec, container, kind) for kind, spec in found.items() if spec}


def _probe(spec: Mapping[str, Any], container: Mapping[str, Any], kind: Kind) -> Probe:
    where = f"{container.get('name')}.{kind.value}"

    def number(name: str, default: float, least: float) -> float:
        value = spec.get(name)
        value = default if value is None else value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= MAX_PERIOD_S
        ):
            raise ProbeError(
                f"{where}.{name} {value!r}: expected a number from {least:g} to {MAX_PERIOD_S:g}"
            )
        return float(value)

    successes = number("successThreshold", 1, 1)
    if kind is not Kind.READINESS and successes != 1:
        raise ProbeError(f"{where}.successThreshold must be 1")
    return Probe(
        check=_check(spec, container, where),
        initial_delay=number("initialDelaySeconds", 0, 0),
        period=number("periodSeconds", 10, 1),
        timeout=number("timeoutSeconds", 1, 1),
        successes=int(successes),
        failures=int(number("failureThreshold", 3, 1)),
    )


def _check(spec: Mapping[str, Any], container: Mapping[str, Any], where: str) -> Check:
    ways = [name for name in ("httpGet", "tcpSocket", "grpc", "exec") if spec.get(name) is not None]
    if len(ways) != 1:
        raise ProbeError(f"{where}: exactly one of httpGet, tcpSocket, grpc and exec is needed")
    (way,), how = ways, spec[ways[0]]
    if not isinstance(how, Mapping):
        raise ProbeError(f"{where}.{way}: expected an object")
    if way == "exec":
        return Exec(_command(how, f"{where}.exec"))
    _check_host(how, f"{where}.{way}")
    port = _port(how.get("port"), container, f"{where}.{way}.port")
    if way == "tcpSocket":
        return TcpSocket(port)
    if way == "grpc":
        return Grpc(port, str(how.get("service") or ""))
    scheme = str(how.get("scheme") or "HTTP").upper()
    if scheme not in ("HTTP", "HTTPS"):
        raise ProbeError(f"{where}.httpGet.scheme {scheme!r}: expected HTTP or HTTPS")
    path = str(how.get("path") or "/")
    return HttpGet(
        port, path if path.startswith("/") else f"/{path}", scheme == "HTTPS", _headers(how, where)
    )


def _check_host(how: Mapping[str, Any], where: str) -> None:
    """Probes go to the own pod alone: else a manifest could have any machine's network searched."""
    if str(how.get("host") or "") not in LOOPBACK:
        raise ProbeError(f"{where}.host {how['host']!r}: probes go to the own pod only; leave it out")


def _command(how: Mapping[str, Any], where: str) -> tuple[str, ...]:
    command = how.get("command")
    if not isinstance(command, Sequence) or isinstance(command, str) or not command:
        raise ProbeError(f"{where}.command: expected a list of words")
    return tuple(str(word) for word in command)


def _headers(how: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    headers = tuple(
        (str(entry.get("name")), str(entry.get("value"))) for entry in how.get("httpHeaders") or ()
    )
    if any(not text.isprintable() for header in headers for text in header):
        raise ProbeError(f"{where}.httpGet.httpHeaders: a header has characters that cannot be sent")
    return headers


def _port(value: object, container: Mapping[str, Any], where: str) -> int:
    """A number, or the name of one of the container's ports."""
    if isinstance(value, str) and not value.isdigit():
        named = {port.get("name"): port.get("containerPort") for port in container.get("ports") or ()}
        if value not in named:
            raise ProbeError(f"{where} {value!r}: the container has no port of that name")
        value = named[value]
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 65_535:
        raise ProbeError(f"{where} {value!r}: expected a port from 1 to 65535 or the name of one")
    return int(number)


# -- what results lead to


@frozen
class Changed:
    """The container's standing, whenever it is another than before."""

    started: bool
    ready: bool


@frozen
class Restart:
    """The container is to be restarted; `reason` is for its events."""

    reason: str


Output = Changed | Restart


@define
class _Worker:
    """One probe of one run of a container."""

    probe: Probe
    next_at: float
    well: bool
    """What the probe says so far; before its first verdict the kubelet's assumption."""
    in_a_row: int = 0
    last: bool | None = None
    asking: bool = False

    def take(self, well: bool, now: float) -> bool:
        """A result; whether it is a verdict: a threshold is reached."""
        self.asking = False
        self.next_at = now + self.probe.period
        self.in_a_row = self.in_a_row + 1 if self.last == well else 1
        self.last = well
        if self.in_a_row < (self.probe.successes if well else self.probe.failures):
            return False
        self.well = well
        return True


@define
class ContainerProbes:
    """The probes of one container. Times are monotonic seconds; a run is any value that names one start of it."""

    probes: Mapping[Kind, Probe]
    _run: object = None
    _held: bool = False
    """A restart was asked for: nothing is probed until there is another run."""
    _workers: dict[Kind, _Worker] = field(factory=dict)
    _told: Changed = Changed(started=False, ready=False)

    def running(self, run: object, now: float) -> list[Output]:
        """The container runs; a run that is known changes nothing."""
        if run == self._run:
            return []
        self._run, self._held = run, False
        self._workers = {
            kind: _Worker(probe, now + probe.initial_delay, well=kind is Kind.LIVENESS)
            for kind, probe in self.probes.items()
        }
        return self._tell()

    def stopped(self) -> list[Output]:
        """It runs no more."""
        self._run, self._workers = None, {}
        return self._tell()

    def due(self, now: float) -> list[tuple[Kind, Probe]]:
        """The probes to be carried out now; each awaits its `result`."""
        found = [
            kind for kind, worker in self._active().items() if not worker.asking and worker.next_at <= now
        ]
        for kind in found:
            self._workers[kind].asking = True
        return [(kind, self._workers[kind].probe) for kind in found]

    def next_timeout(self) -> float | None:
        """When to ask for `due` again; None while nothing is to be probed."""
        return min((w.next_at for w in self._active().values() if not w.asking), default=None)

    def result(self, kind: Kind, run: object, well: bool, message: str, now: float) -> list[Output]:
        """What a probe of a run came to; of another run than the present one it says nothing."""
        worker = self._workers.get(kind)
        if worker is None or run != self._run:
            return []
        verdict = worker.take(well, now)
        if verdict and not well and kind is not Kind.READINESS and not self._held:
            self._held = True
            name = "startup" if kind is Kind.STARTUP else "liveness"
            return [*self._tell(), Restart(f"{name} probe failed: {message}")]
        return self._tell()

    @property
    def standing(self) -> Changed:
        """Started and ready, as things are."""
        runs = self._run is not None
        startup, readiness = self._workers.get(Kind.STARTUP), self._workers.get(Kind.READINESS)
        started = runs and (startup is None or startup.well)
        ready = started and not self._held and (readiness is None or readiness.well)
        return Changed(started, ready)

    def _active(self) -> dict[Kind, _Worker]:
        """The startup probe until it succeeds, then the others."""
        if self._held or self._run is None:
            return {}
        startup = self._workers.get(Kind.STARTUP)
        if startup is not None and not startup.well:
            return {Kind.STARTUP: startup}
        return {kind: worker for kind, worker in self._workers.items() if kind is not Kind.STARTUP}

    def _tell(self) -> list[Output]:
        now = self.standing
        if now == self._told:
            return []
        self._told = now
        return [now]
