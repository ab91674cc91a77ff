"""What ``kubectl get`` shows of each kind: columns as kubectl's users know them, each with the function of
its cell.

Columns of priority 0 are always shown, of priority 1 with ``-o wide``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from . import podcells
from .podcells import Cell, Object, age
from .selectors import selector_text


@frozen
class Column:
    """A column: its header, OpenAPI type, priority, and the cell of an object at time ``now`` (seconds since
    the epoch)."""

    name: str
    cell: Callable[[Object, float], Cell]
    type: str = "string"
    priority: int = 0
    format: str = ""
    description: str = ""

    def definition(self) -> dict[str, Any]:
        """The ``TableColumnDefinition``."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


def _name(obj: Object, now: float) -> Cell:
    return str(obj["metadata"]["name"])


def _age(obj: Object, now: float) -> Cell:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _status(path: str, default: Cell = 0) -> Callable[[Object, float], Cell]:
    return lambda obj, now: (obj.get("status") or {}).get(path, default)


def _spec(path: str, default: Cell = 0) -> Callable[[Object, float], Cell]:
    return lambda obj, now: (obj.get("spec") or {}).get(path, default)


def _ready_of_replicas(obj: Object, now: float) -> Cell:
    return f"{(obj.get('status') or {}).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}"


def _template(part: str) -> Callable[[Object, float], Cell]:
    def cell(obj: Object, now: float) -> Cell:
        containers = obj["spec"].get("template", {}).get("spec", {}).get("containers") or ()
        return ",".join(str(container.get(part, "")) for container in containers)

    return cell


def _selector(obj: Object, now: float) -> Cell:
    return selector_text(obj["spec"].get("selector") or {})


def _node_status(obj: Object, now: float) -> Cell:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = next((item.get("status") for item in conditions if item.get("type") == "Ready"), None)
    words = [{"True": "Ready", "False": "NotReady", None: "Unknown"}.get(ready, "NotReady")]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node_roles(obj: Object, now: float) -> Cell:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))
    return ",".join(role for role in roles if role) or "<none>"


def _node_info(key: str) -> Callable[[Object, float], Cell]:
    return lambda obj, now: (obj.get("status") or {}).get("nodeInfo", {}).get(key, "<unknown>")


def _node_address(kind: str) -> Callable[[Object, float], Cell]:
    def cell(obj: Object, now: float) -> Cell:
        addresses = (obj.get("status") or {}).get("addresses") or ()
        return next((item["address"] for item in addresses if item.get("type") == kind), "<none>")

    return cell


def _event_seen(first: bool) -> Callable[[Object, float], Cell]:
    def cell(obj: Object, now: float) -> Cell:
        names = ("firstTimestamp", "eventTime") if first else ("lastTimestamp", "eventTime")
        moment = next((obj[name] for name in names if obj.get(name)), None)
        return age(moment or obj["metadata"].get("creationTimestamp"), now)

    return cell


def _event_object(obj: Object, now: float) -> Cell:
    about = obj.get("involvedObject") or {}
    kind, name = str(about.get("kind", "")).lower(), about.get("name", "")
    return f"{kind}/{name}" if name else kind


def _event_source(obj: Object, now: float) -> Cell:
    source = obj.get("source") or {}
    words = [source.get("component") or obj.get("reportingComponent", ""), source.get("host", "")]
    return ", ".join(word for word in words if word)


def _plain(key: str, default: Cell = "") -> Callable[[Object, float], Cell]:
    return lambda obj, now: obj.get(key, default)


def _data_count(*maps: str) -> Callable[[Object, float], Cell]:
    return lambda obj, now: sum(len(obj.get(name) or ()) for name in maps)


def _service_ports(obj: Object, now: float) -> Cell:
    ports = (obj.get("spec") or {}).get("ports") or ()
    return ",".join(f"{port.get('port')}/{port.get('protocol')}" for port in ports) or "<none>"


_SHOWN: Final = 3  # as Kubernetes has it


def _some(texts: list[str]) -> str:
    more = f" + {len(texts) - _SHOWN} more..." if len(texts) > _SHOWN else ""
    return ",".join(texts[:_SHOWN]) + more or "<none>"


def _endpoints(obj: Object, now: float) -> Cell:
    found = []
    for subset in obj.get("subsets") or ():
        addresses = [address["ip"] for address in subset.get("addresses") or ()]
        ports = [f":{port['port']}" for port in subset.get("ports") or ()]
        found += [address + port for port in ports or [""] for address in addresses]
    return _some(found)


def _slice_ports(obj: Object, now: float) -> Cell:
    return (
        _some([str(port.get("port")) for port in obj.get("ports") or ()]) if obj.get("ports") else "<unset>"
    )


def _slice_addresses(obj: Object, now: float) -> Cell:
    return _some([address for one in obj.get("endpoints") or () for address in one.get("addresses") or ()])


def _service_selector(obj: Object, now: float) -> Cell:
    selector = (obj.get("spec") or {}).get("selector") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items())) or "<none>"


def _event_subobject(obj: Object, now: float) -> Cell:
    return str((obj.get("involvedObject") or {}).get("fieldPath", ""))


def _event_message(obj: Object, now: float) -> Cell:
    return str(obj.get("message", "")).strip()


NAME: Final = Column("Name", _name, format="name", description="Name must be unique within a namespace.")
AGE: Final = Column("Age", _age, description="Time since the object was created.")

COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = MappingProxyType(
    {
        "Pod": (
            NAME,
            Column("Ready", podcells.ready, description="Containers that are ready, of all."),
            Column("Status", podcells.status, description="The state of the containers in this pod."),
            Column("Restarts", podcells.restarts, description="How often containers were restarted."),
            AGE,
            Column("IP", podcells.address, priority=1),
            Column("Node", podcells.node, priority=1),
            Column("Nominated Node", podcells.nominated, priority=1),
            Column("Readiness Gates", podcells.gates, priority=1),
        ),
        "Deployment": (
            NAME,
            Column("Ready", _ready_of_replicas, description="Ready pods, of those wanted."),
            Column("Up-to-date", _status("updatedReplicas"), "integer"),
            Column("Available", _status("availableReplicas"), "integer"),
            AGE,
            Column("Containers", _template("name"), priority=1),
            Column("Images", _template("image"), priority=1),
            Column("Selector", _selector, priority=1),
        ),
        "ReplicaSet": (
            NAME,
            Column("Desired", _spec("replicas", 1), "integer"),
            Column("Current", _status("replicas"), "integer"),
            Column("Ready", _status("readyReplicas"), "integer"),
            AGE,
            Column("Containers", _template("name"), priority=1),
            Column("Images", _template("image"), priority=1),
            Column("Selector", _selector, priority=1),
        ),
        "StatefulSet": (
            NAME,
            Column("Ready", _ready_of_replicas, description="Ready pods, of those wanted."),
            AGE,
            Column("Containers", _template("name"), priority=1),
            Column("Images", _template("image"), priority=1),
        ),
        "Node": (
            NAME,
            Column("Status", _node_status),
            Column("Roles", _node_roles),
            AGE,
            Column("Version", _node_info("kubeletVersion")),
            Column("Internal-IP", _node_address("InternalIP"), priority=1),
            Column("External-IP", _node_address("ExternalIP"), priority=1),
            Column("OS-Image", _node_info("osImage"), priority=1),
            Column("Kernel-Version", _node_info("kernelVersion"), priority=1),
            Column("Container-Runtime", _node_info("containerRuntimeVersion"), priority=1),
        ),
        "ConfigMap": (NAME, Column("Data", _data_count("data", "binaryData")), AGE),
        "Secret": (NAME, Column("Type", _plain("type")), Column("Data", _data_count("data")), AGE),
        "Service": (
            NAME,
            Column("Type", _spec("type", "")),
            Column("Cluster-IP", _spec("clusterIP", "<none>"), description="None: there is no such address."),
            Column("External-IP", _spec("externalName", "<none>"), description="Of ExternalName: that name."),
            Column("Port(s)", _service_ports, description="The service's ports."),
            AGE,
            Column("Selector", _service_selector, priority=1),
        ),
        "Endpoints": (NAME, Column("Endpoints", _endpoints, description="Ready addresses and ports."), AGE),
        "EndpointSlice": (
            NAME,
            Column("AddressType", _plain("addressType")),
            Column("Ports", _slice_ports),
            Column("Endpoints", _slice_addresses),
            AGE,
        ),
        "ServiceAccount": (NAME, Column("Secrets", _data_count("secrets")), AGE),
        "Namespace": (NAME, Column("Status", _status("phase", "Active")), AGE),
        "Event": (
            Column("Last Seen", _event_seen(first=False)),
            Column("Type", _plain("type")),
            Column("Reason", _plain("reason")),
            Column("Object", _event_object),
            Column("Subobject", _event_subobject, priority=1),
            Column("Source", _event_source, priority=1),
            Column("Message", _event_message),
            Column("First Seen", _event_seen(first=True), priority=1),
            Column("Count", _plain("count", 1), "string", priority=1),
            Column("Name", _name, priority=1, format="name"),
        ),
    }
)

#: For a kind without columns of its own.
FALLBACK: Final = (
    NAME,
    Column("Created At", lambda obj, now: obj["metadata"].get("creationTimestamp", ""), "date"),
)
