"""A container's ``resources`` as OCI's ``linux.resources``."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from machineplane.quantities import BadQuantity, parse_quantity
from machineplane.runtime.errors import PodSpecError

CPU_PERIOD_US = 100_000  # Kubernetes' and the kernel's default
_MIN_QUOTA_US = 1_000  # the kernel takes no less
_MIN_SHARES, _MAX_SHARES = 2, 262_144  # the kernel's bounds
_MAX_BYTES = 1 << 62


def quantity(value: object, where: str) -> Fraction:
    """The number that a quantity says; negative ones are refused.

    Raises:
        PodSpecError: it is none; ``where`` names the field.
    """
    try:
        number = parse_quantity(value)
    except BadQuantity as error:
        raise PodSpecError(f"{where}: {str(value)[:40]!r} is not a quantity such as 500m or 64Mi") from error
    if number < 0:
        raise PodSpecError(f"{where}: {value} is negative")
    return number


def byte_count(value: object, where: str) -> int:
    """A quantity in whole bytes, rounded up and bounded by what the kernel takes."""
    return min(math.ceil(quantity(value, where)), _MAX_BYTES)


def linux_resources(resources: Mapping[str, Any], pids_limit: int, where: str) -> dict[str, Any]:
    """The OCI ``linux.resources`` of a container: memory and CPU by its limits and requests, process count, devices.

    The device rule denies all; libcrun then allows the ordinary ones (null, zero, random, tty and so on).
    """
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    answer: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": pids_limit}}
    if "memory" in limits:
        answer["memory"] = {"limit": byte_count(limits["memory"], f"{where}.limits.memory")}
    cpu: dict[str, int] = {}
    share_source = requests.get("cpu", limits.get("cpu"))
    if share_source is not None:
        shares = int(quantity(share_source, f"{where}.requests.cpu") * 1024)
        cpu["shares"] = min(max(shares, _MIN_SHARES), _MAX_SHARES)
    if "cpu" in limits and (amount := quantity(limits["cpu"], f"{where}.limits.cpu")):
        cpu |= {"quota": max(int(amount * CPU_PERIOD_US), _MIN_QUOTA_US), "period": CPU_PERIOD_US}
    return answer | ({"cpu": cpu} if cpu else {})
