"""Kubernetes quantities, exactly: ``100m``, ``0.5``, ``1Gi``, ``1e3`` …

The grammar is that of ``k8s.io/apimachinery/pkg/api/resource``::

    quantity = signed-number [suffix]
    suffix   = n u m k M G T P E | Ki Mi Gi Ti Pi Ei | ("e" | "E") signed-integer

Values are kept as :class:`fractions.Fraction`; nothing is rounded until a caller asks for whole units, and
then it is rounded *up*, as the scheduler's arithmetic does (a request for half a millicore reserves one).
"""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final

#: What Kubernetes keeps of a quantity: it caps at 2^63 - 1 whole units and says so by overflow; we refuse.
LARGEST: Final = Fraction(2**63 - 1)
#: The longest text we read: far more digits than a number under the cap with a nano suffix needs.
LONGEST: Final = 64

_NUMBER: Final = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(.*)", re.DOTALL)
_EXPONENT: Final = re.compile(r"[eE]([+-]?[0-9]{1,4})")
_DECIMAL: Final[Mapping[str, Fraction]] = MappingProxyType(
    {
        suffix: Fraction(10) ** power
        for suffix, power in zip(
            ("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), range(-9, 19, 3), strict=True
        )
    }
)
_BINARY: Final[Mapping[str, Fraction]] = MappingProxyType(
    {f"{letter}i": Fraction(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}
)


class BadQuantity(ValueError):
    """A text that is no quantity; the message is Kubernetes' own."""

    def __init__(self) -> None:
        super().__init__(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )


def parse_quantity(text: object) -> Fraction:
    """The exact value. Numbers (as YAML's ``cpu: 2`` gives them) are read as their decimal text. Raises
    BadQuantity."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise BadQuantity
    text = str(text)
    match = _NUMBER.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        raise BadQuantity
    sign, digits, suffix = match.groups()
    value = Fraction(digits + "0" if digits.endswith(".") else digits) * _multiplier(suffix)
    if value > LARGEST:
        raise BadQuantity
    return -value if sign == "-" else value


def _multiplier(suffix: str) -> Fraction:
    if (known := _DECIMAL.get(suffix, _BINARY.get(suffix))) is not None:
        return known
    match = _EXPONENT.fullmatch(suffix)
    if match is None or abs(int(match[1])) > 64:
        raise BadQuantity
    return Fraction(10) ** int(match[1])


def millicores(text: object) -> int:
    """A CPU quantity in thousandths of a core, rounded up: ``0.5`` → 500. Raises BadQuantity, also if
    negative."""
    return _whole(parse_quantity(text) * 1000)


def byte_count(text: object) -> int:
    """A memory or storage quantity in bytes, rounded up: ``1Ki`` → 1024. Raises BadQuantity, also if
    negative."""
    return _whole(parse_quantity(text))


def _whole(value: Fraction) -> int:
    if value < 0:
        raise BadQuantity
    return math.ceil(value)
