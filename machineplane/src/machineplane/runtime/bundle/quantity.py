"""Kubernetes' quantities (``500m``, ``64Mi``, ``1e3``) as exact numbers, and the resources made of them."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from machineplane.runtime.errors import PodSpecError

_QUANTITY = re.compile(
    r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([eE][+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i))?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}

CPU_PERIOD_US = 100_000  # Kubernetes' and the kernel's default
_MIN_QUOTA_US = 1_000  # the kernel takes no less
_MIN_SHARES, _MAX_SHARES = 2, 262_144  # the kernel's bounds
_MAX_BYTES = 1 << 62


def quantity(value: object, where: str) -> Decimal:
    """The number that a quantity says; negative ones are refused.

    Raises:
        PodSpecError: it is none; ``where`` names the field.
    """
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise PodSpecError(f"{where}: {str(value)[:40]!r} is not a quantity such as 500m or 64Mi")
    number = Decimal(match[1])
    if match[2]:
        number = number.scaleb(int(match[2][1:]))
    if match[3]:
        number = (
            number * (1 << _BINARY[match[3]]) if match[3] in _BINARY else number.scaleb(_DECIMAL[match[3]])
        )
    if number < 0:
        raise PodSpecError(f"{where}: {value} is negative")
    return number


def byte_count(value: object, where: str) -> int:
    """A quantity in whole bytes, rounded up and bounded by what the kernel takes."""
    return min(int(quantity(value, where).to_integral_value(rounding="ROUND_CEILING")), _MAX_BYTES)


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
