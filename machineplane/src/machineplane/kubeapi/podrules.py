"""Rules for a pod's spec, wherever it stands: in a Pod or in a template."""

from collections.abc import Mapping
from typing import Any, Final

from machineplane.quantities import BadQuantity, parse_quantity

from .names import label_problem, subdomain_problem
from .problems import Problems

Object = Mapping[str, Any]

RESTART_POLICIES: Final = ("Always", "OnFailure", "Never")
PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
DNS_POLICIES: Final = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
MAX_PORT: Final = 65535
_ENV_MESSAGE: Final = (
    "a valid environment variable name must consist only of printable ASCII characters other than '='"
)


def check_pod_spec(spec: Object, path: str, problems: Problems) -> None:
    """Containers, volumes and policies of a pod."""
    volumes = _check_volumes(spec.get("volumes") or (), f"{path}.volumes", problems)
    containers = spec.get("containers") or ()
    if not containers:
        problems.required(f"{path}.containers")
    names: set[str] = set()
    for where, items in (("containers", containers), ("initContainers", spec.get("initContainers") or ())):
        for index, container in enumerate(items):
            _check_container(container, f"{path}.{where}[{index}]", names, volumes, problems)
    _choice(spec, "restartPolicy", RESTART_POLICIES, path, problems)
    _choice(spec, "dnsPolicy", DNS_POLICIES, path, problems)
    _check_dns(spec, path, problems)
    _not_negative(spec, "terminationGracePeriodSeconds", path, problems)
    if (name := spec.get("nodeName")) and (problem := subdomain_problem(name)) is not None:
        problems.invalid(f"{path}.nodeName", name, problem)
    if (name := spec.get("hostname")) and (problem := label_problem(name)) is not None:
        problems.invalid(f"{path}.hostname", name, problem)


def _check_dns(spec: Object, path: str, problems: Problems) -> None:
    if spec.get("dnsPolicy") == "None" and not (spec.get("dnsConfig") or {}).get("nameservers"):
        why = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        problems.required(f"{path}.dnsConfig.nameservers", why)


def _check_volumes(volumes: Any, path: str, problems: Problems) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        where = f"{path}[{index}]"
        _unique_name(volume, where, names, problems)
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            problems.forbidden(f"{where}.{sources[1]}", "may not specify more than 1 volume type")
    return names


def _unique_name(item: Object, path: str, names: set[str], problems: Problems) -> None:
    name = item.get("name", "")
    if not name:
        problems.required(f"{path}.name")
    elif (problem := label_problem(name)) is not None:
        problems.invalid(f"{path}.name", name, problem)
    elif name in names:
        problems.duplicate(f"{path}.name", name)
    names.add(name)


def _check_container(
    container: Object, path: str, names: set[str], volumes: set[str], problems: Problems
) -> None:
    _unique_name(container, path, names, problems)
    image = container.get("image", "")
    if not image:
        problems.required(f"{path}.image")
    elif image != image.strip():
        problems.invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    _choice(container, "imagePullPolicy", PULL_POLICIES, path, problems)
    for index, port in enumerate(container.get("ports") or ()):
        _check_port(port, f"{path}.ports[{index}]", problems)
    for index, variable in enumerate(container.get("env") or ()):
        _check_variable(variable, f"{path}.env[{index}]", problems)
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        _check_mount(mount, f"{path}.volumeMounts[{index}]", volumes, problems)
    _check_resources(container.get("resources") or {}, f"{path}.resources", problems)


def _check_port(port: Object, path: str, problems: Problems) -> None:
    number = port.get("containerPort", 0)
    if not number:
        problems.required(f"{path}.containerPort")
    for key in ("containerPort", "hostPort"):
        if (value := port.get(key, 0)) and not 0 < value <= MAX_PORT:
            problems.invalid(f"{path}.{key}", value, f"must be between 1 and {MAX_PORT}, inclusive")
    _choice(port, "protocol", PROTOCOLS, path, problems)


def _check_variable(variable: Object, path: str, problems: Problems) -> None:
    name = variable.get("name", "")
    if not name:
        problems.required(f"{path}.name")
    elif "=" in name or not (name.isascii() and name.isprintable()):
        problems.invalid(f"{path}.name", name, _ENV_MESSAGE)
    if variable.get("value") and variable.get("valueFrom"):
        problems.invalid(f"{path}.valueFrom", "", "may not be specified when `value` is not empty")


def _check_mount(mount: Object, path: str, volumes: set[str], problems: Problems) -> None:
    if not mount.get("mountPath"):
        problems.required(f"{path}.mountPath")
    name = mount.get("name", "")
    if not name:
        problems.required(f"{path}.name")
    elif name not in volumes:
        problems.not_found(f"{path}.name", name)


def _check_resources(resources: Object, path: str, problems: Problems) -> None:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for which, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            _check_amount(amount, f"{path}.{which}[{name}]", problems)
    if problems.causes:
        return
    for name, amount in requests.items():
        if name in limits and parse_quantity(amount) > parse_quantity(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            problems.invalid(f"{path}.requests", amount, why)


def _check_amount(amount: str, path: str, problems: Problems) -> None:
    try:
        if parse_quantity(amount) < 0:
            problems.invalid(path, amount, "must be greater than or equal to 0")
    except BadQuantity as error:
        problems.invalid(path, amount, str(error))


def _choice(item: Object, key: str, supported: tuple[str, ...], path: str, problems: Problems) -> None:
    if (value := item.get(key)) and value not in supported:
        problems.unsupported(f"{path}.{key}", value, supported)


def _not_negative(item: Object, key: str, path: str, problems: Problems) -> None:
    if (value := item.get(key) or 0) < 0:
        problems.invalid(f"{path}.{key}", value, "must be greater than or equal to 0")
