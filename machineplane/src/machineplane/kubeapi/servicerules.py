"""Services: what is filled in, and what one may say here.

There is no address of the whole fabric: a Service's address is one on the loopback of each pod (workplane-spec, Traffic). So
``clusterIP`` is ``None`` or absent, and what needs an address or a port of machines is refused by name. An ``ExternalName``
is no more than a name in the pods' DNS.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from .names import label_problem, subdomain_problem
from .problems import Problems

Object = Mapping[str, Any]

MAX_PORT: Final = 65535
HEADLESS: Final = "None"
PROTOCOLS: Final = ("TCP", "UDP")
EXTERNAL_NAME: Final = "ExternalName"
TYPES: Final = ("ClusterIP", EXTERNAL_NAME)
AFFINITIES: Final = ("None", "ClientIP")
TRAFFIC_POLICIES: Final = ("Cluster", "Local")
MAX_AFFINITY_S: Final = 86_400  # of Kubernetes' API
#: Fields that only have a meaning for addresses and ports of machines.
_OF_MACHINES: Final = (
    "externalIPs",
    "healthCheckNodePort",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
)
_NO_SUCH_ADDRESS: Final = (
    "services have no address or port outside of pods: only ClusterIP and ExternalName are served"
)
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")  # RFC 6335, 5.1


def set_service_defaults(obj: dict[str, Any]) -> None:
    """As an API server, save for addresses: none is given out."""
    spec = obj.setdefault("spec", {})
    for name, value in (
        ("type", "ClusterIP"),
        ("sessionAffinity", "None"),
        ("internalTrafficPolicy", "Cluster"),
    ):
        spec[name] = spec.get(name) or value
    for port in spec.get("ports") or ():
        port["protocol"] = port.get("protocol") or "TCP"
        port["targetPort"] = port.get("targetPort") or port.get("port", 0)


def check_service(obj: Object, problems: Problems) -> None:
    """Type, address, ports and what is not served."""
    spec = obj.get("spec") or {}
    name = str((obj.get("metadata") or {}).get("name") or "")
    if name and (label_problem(name) is not None or name[0].isdigit()):
        problems.invalid(
            "metadata.name", name, "a Service's name is an RFC 1035 label: it begins with a letter"
        )
    if spec.get("type") not in TYPES:
        problems.unsupported("spec.type", spec.get("type"), TYPES)
    _check_external_name(spec, problems)
    addresses = [("spec.clusterIP", spec.get("clusterIP"))]
    addresses += [(f"spec.clusterIPs[{n}]", value) for n, value in enumerate(spec.get("clusterIPs") or ())]
    for path, value in addresses:
        if value and value != HEADLESS:
            problems.invalid(path, value, f"must be empty or '{HEADLESS}': {_NO_SUCH_ADDRESS}")
    for field in _OF_MACHINES:
        if spec.get(field):
            problems.forbidden(f"spec.{field}", _NO_SUCH_ADDRESS)
    if spec.get("sessionAffinity") not in AFFINITIES:
        problems.unsupported("spec.sessionAffinity", spec.get("sessionAffinity"), AFFINITIES)
    _check_affinity(spec, problems)
    if spec.get("internalTrafficPolicy") not in TRAFFIC_POLICIES:
        problems.unsupported(
            "spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), TRAFFIC_POLICIES
        )
    _check_ports(spec, problems)


def _check_affinity(spec: Object, problems: Problems) -> None:
    config = spec.get("sessionAffinityConfig")
    if config is None:
        return
    path = "spec.sessionAffinityConfig"
    if spec.get("sessionAffinity") != "ClientIP":
        problems.forbidden(path, "may only be set where `sessionAffinity` is 'ClientIP'")
        return
    seconds = (config.get("clientIP") or {}).get("timeoutSeconds")
    if seconds is not None and not 0 < seconds <= MAX_AFFINITY_S:
        problems.invalid(
            f"{path}.clientIP.timeoutSeconds", seconds, f"must be between 1 and {MAX_AFFINITY_S}, inclusive"
        )


def _check_external_name(spec: Object, problems: Problems) -> None:
    name = spec.get("externalName") or ""
    if spec.get("type") != EXTERNAL_NAME:
        if name:
            problems.forbidden("spec.externalName", f"may only be set where `type` is '{EXTERNAL_NAME}'")
        return
    if not name:
        problems.required("spec.externalName")
    elif (wrong := subdomain_problem(name.removesuffix("."))) is not None:
        problems.invalid("spec.externalName", name, wrong)
    if spec.get("clusterIP"):
        problems.forbidden("spec.clusterIP", f"may not be set where `type` is '{EXTERNAL_NAME}'")


def _check_ports(spec: Object, problems: Problems) -> None:
    ports = spec.get("ports") or ()
    if not ports and spec.get("clusterIP") != HEADLESS and spec.get("type") != EXTERNAL_NAME:
        problems.required("spec.ports")
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        path, name = f"spec.ports[{index}]", port.get("name", "")
        number = (port.get("protocol", ""), port.get("port", 0))
        _check_port(port, path, problems)
        if not name and len(ports) > 1:
            problems.required(f"{path}.name")
        elif name and name in names:
            problems.duplicate(f"{path}.name", name)
        if number in numbers:
            problems.duplicate(path, {"protocol": number[0], "port": number[1]})
        names.add(name)
        numbers.add(number)


def _check_port(port: Object, path: str, problems: Problems) -> None:
    if (name := port.get("name")) and (wrong := label_problem(name)) is not None:
        problems.invalid(f"{path}.name", name, wrong)
    if port.get("protocol") not in PROTOCOLS:
        problems.unsupported(f"{path}.protocol", port.get("protocol"), PROTOCOLS)
    if port.get("nodePort"):
        problems.forbidden(f"{path}.nodePort", _NO_SUCH_ADDRESS)
    number, target = port.get("port", 0), port.get("targetPort", 0)
    if not 0 < number <= MAX_PORT:
        problems.invalid(f"{path}.port", number, f"must be between 1 and {MAX_PORT}, inclusive")
    elif isinstance(target, int) and not 0 < target <= MAX_PORT:
        problems.invalid(f"{path}.targetPort", target, f"must be between 1 and {MAX_PORT}, inclusive")
    elif isinstance(target, str) and (len(target) > 15 or not _PORT_NAME.fullmatch(target)):
        problems.invalid(
            f"{path}.targetPort", target, "must be a port's name: at most 15 of a-z, 0-9 and '-'"
        )
