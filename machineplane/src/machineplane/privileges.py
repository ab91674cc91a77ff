"""What the daemon must be allowed to do on its machine."""

from pathlib import Path

# <linux/capability.h>: numbers of the bits in CapEff of proc(5)'s status.
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def missing_privileges(status: Path = Path("/proc/self/status")) -> tuple[str, ...]:
    """The capabilities that pods need (for links, and for namespaces and mounts) and this process lacks."""
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    effective = int(lines["CapEff"], 16)
    return tuple(name for name, bit in _NEEDED.items() if not effective >> bit & 1)
