"""The pod's DNS, run: what the machine's resolver configuration says, and where it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
import trio

from workplane.resolver import Address, Lookup, Resolver, upstreams

DOMAIN: Final = "cluster.local"
RESOLV_CONF: Final = Path("/etc/resolv.conf")
"""The agent's own container has the machine's; the app's containers have one that names the agent."""


async def serve_names(lookup: Lookup, address: Address, resolv_conf: Path = RESOLV_CONF) -> None:
    """Serve until cancelled. An address that cannot be had is logged: the agent has other work, too."""
    log = structlog.get_logger(part="dns")
    try:
        text = await trio.Path(resolv_conf).read_text(errors="replace")
    except OSError as error:
        log.warning("no-upstream-resolvers", error=str(error))
        text = ""
    resolver = Resolver(DOMAIN, lookup, upstreams(text))
    async with trio.open_nursery() as nursery:
        try:
            host, port = await nursery.start(resolver.serve, *address)
        except OSError as error:
            log.error(
                "no-dns: this pod's apps find no service by its name", address=address, error=str(error)
            )
        else:
            log.info("dns", host=host, port=port)
