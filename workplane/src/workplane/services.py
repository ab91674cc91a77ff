"""Services as the machine tells of them, remembered for a moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import structlog
import trio
from attrs import define, field, frozen

from workplane.logs import Sparing

FRESH_S: Final = 5.0
"""For so long the machine is not asked again about a Service that is there: as long as DNS says it holds. A guess."""
MISSING_S: Final = 1.0
"""And about one that is not: who has just made one does not wait long. A guess."""
MAX_KEPT: Final = 1024
"""Services that are remembered; at it the one that nobody has asked for for longest goes. A guess."""
MAX_ITEMS: Final = 256
"""Ports, or workloads, of one Service; a Service with more is not understood. A guess."""
AFFINITY_S: Final = 10_800
MAX_AFFINITY_S: Final = 86_400
"""Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`, and its most."""
PROTOCOLS: Final = ("TCP", "UDP")

T = TypeVar("T")


@frozen
class ServicePort:
    """A port of a Service. `target` is the app's port, or the name that a container gives it."""

    name: str
    port: int
    protocol: str
    target: int | str


@frozen(kw_only=True)
class Service:
    """A Service: which workloads' pods it selects, and how they are reached.

    `sticky_s`: a client stays with its replica, until it has opened no connection for so many seconds; 0: it does not.
    `unready`: pods that are not ready belong to it as well. `local`: only those on the caller's machine do.
    `external_name`: it is no more than another name for that.
    """

    name: str
    namespace: str
    ports: tuple[ServicePort, ...] = ()
    workloads: tuple[str, ...] = ()
    headless: bool = False
    sticky_s: float = 0.0
    unready: bool = False
    local: bool = False
    external_name: str = ""
    annotations: Mapping[str, str] = field(factory=dict)

    @classmethod
    def of(cls, value: object) -> Service:
        """From the machine's JSON (workplane-spec, ``/v1/services/…``). Raises ValueError, which names the field."""
        fields = _typed(value, dict, "a Service")
        return cls(
            name=_typed(fields.get("name"), str, "name"),
            namespace=_typed(fields.get("namespace"), str, "namespace"),
            ports=tuple(_port_of(port) for port in _items(fields, "ports")),
            workloads=tuple(_typed(item, str, "workloads") for item in _items(fields, "workloads")),
            headless=bool(fields.get("headless")),
            sticky_s=_sticky_s(fields),
            unready=fields.get("unready") is True,
            local=fields.get("local") is True,
            external_name=_typed(fields.get("external_name") or "", str, "external_name"),
            annotations=_annotations(_typed(fields.get("annotations") or {}, dict, "annotations")),
        )

    def port(self, number: int, protocol: str) -> ServicePort | None:
        """The port of that number, if there is one."""
        found = (port for port in self.ports if port.port == number and port.protocol == protocol)
        return next(found, None)


def selecting(values: Iterable[object]) -> tuple[Service, ...]:
    """The Services among those that the machine says select this pod; what cannot be understood is logged and left out."""
    found = []
    for value in values:
        try:
            found.append(Service.of(value))
        except ValueError as error:
            structlog.get_logger(part="traffic").warning("service-not-understood", error=str(error))
    return tuple(found)


def _typed(value: object, kind: type[T], what: str) -> T:
    if type(value) is not kind:
        raise ValueError(f"{what}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _items(fields: Mapping[str, Any], name: str) -> list[Any]:
    items = _typed(fields.get(name) or [], list, name)
    if len(items) > MAX_ITEMS:
        raise ValueError(f"{name}: {len(items)}, at most {MAX_ITEMS} are dealt with")
    return items


def _sticky_s(fields: Mapping[str, Any]) -> float:
    if fields.get("affinity") != "ClientIP":
        return 0.0
    seconds = _typed(fields.get("affinity_s", AFFINITY_S), int, "affinity_s")
    if not 0 < seconds <= MAX_AFFINITY_S:
        raise ValueError(f"affinity_s: {seconds}, allowed are 1 to {MAX_AFFINITY_S}")
    return float(seconds)


def _annotations(value: Mapping[Any, Any]) -> dict[str, str]:
    return {name: text for name, text in value.items() if type(name) is str and type(text) is str}


def _port_of(value: object) -> ServicePort:
    fields = _typed(value, dict, "a port")
    target = fields.get("target")
    protocol = fields.get("protocol") or "TCP"
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: {protocol!r}, only {' and '.join(PROTOCOLS)} are carried")
    if type(target) is not str:
        target = _number(target, "target")
    name = _typed(fields.get("name") or "", str, "name")
    return ServicePort(name, _number(fields.get("port"), "port"), protocol, target)


def _number(value: object, what: str) -> int:
    number = _typed(value, int, what)
    if not 0 < number < 1 << 16:
        raise ValueError(f"{what}: {number} is no port")
    return number


Ask = Callable[[str, str], Awaitable[Service | None]]
"""(namespace, name): the machine's answer, None for no such Service; raises OSError (`MachineError`) if it gives none."""


@define
class _Kept:
    service: Service | None
    until: float
    lock: trio.Lock = field(factory=trio.Lock)


class Services:
    """What the machine has said of Services. While it is away its last word holds."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._silent = Sparing(structlog.get_logger(part="machine"))
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def get(self, namespace: str, name: str) -> Service | None:
        """The Service; None: there is none. Raises OSError if the machine has never said so, and does not now."""
        kept = self._kept.get((namespace, name))
        if kept is None:
            kept = self._kept[namespace, name] = _Kept(None, -1.0)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end((namespace, name))
        if trio.current_time() >= kept.until:
            async with kept.lock:  # one question for all who want to know
                if trio.current_time() >= kept.until:
                    await self._refresh(namespace, name, kept)
        else:
            await trio.lowlevel.checkpoint()
        return kept.service

    async def _refresh(self, namespace: str, name: str, kept: _Kept) -> None:
        try:
            kept.service = await self._ask(namespace, name)
        except (OSError, ValueError) as error:
            if kept.service is None:
                raise OSError(f"Service {namespace}/{name}: {error}") from error
            self._silent.info(
                "machine-does-not-tell: its last word about a Service holds",
                service=f"{namespace}/{name}",
                error=str(error),
            )
        kept.until = trio.current_time() + (MISSING_S if kept.service is None else FRESH_S)
