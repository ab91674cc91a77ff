"""Kubernetes resource quantities (``100m``, ``1.5``, ``64Mi``, ``1e3``), read exactly and rounded up."""

import re
from decimal import ROUND_CEILING, Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{s: Decimal(1000) ** (i + 1) for i, s in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{s: Decimal(1024) ** (i + 1) for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")


def parse_quantity(text: object) -> Decimal:
    """The exact value of a quantity given as a string or number. Raises ValueError."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)) or len(str(text)) > 64:
        raise ValueError(f"{text!r} is not a quantity: write a number with m, k, M, G, Ki, Mi, Gi, …")
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity: write a number with m, k, M, G, Ki, Mi, Gi, …")
    number, suffix, exponent = match.groups()
    return Decimal(number) * (Decimal(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""])


def parse_bytes(text: object) -> int:
    """A quantity of bytes, rounded up. Raises ValueError, also for a negative one."""
    return _natural(parse_quantity(text), text)


def parse_millis(text: object) -> int:
    """A quantity of processors in thousandths, rounded up. Raises ValueError, also for a negative one."""
    return _natural(parse_quantity(text) * 1000, text)


def _natural(value: Decimal, text: object) -> int:
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return int(value.to_integral_value(rounding=ROUND_CEILING))
