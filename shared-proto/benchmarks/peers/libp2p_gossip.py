"""What `gossip.py` measures of py-libp2p's GossipSub: run by the interpreter of an environment that has it (PyPI `libp2p`).

    python shared-proto/benchmarks/peers/libp2p_gossip.py --machines 30 --burst 200

Hosts in this process over its default transport (TCP, Noise, Yamux), each connected with the same number of others on a
ring, messages signed and verified. What has not arrived ``--patience`` seconds after the first publish is lost; what of
the burst was not even taken by then is not ``published``. Its limit of ten messages a second for a topic is off: a burst
would not pass it. Its last line is one JSON object of figures, or {"error": why}.
"""

import argparse
import json
import logging
import os
import time
from contextlib import AsyncExitStack
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

TOPIC = "bench"
PROTOCOL = TProtocol("/meshsub/1.2.0")
ANY = "/ip4/127.0.0.1/tcp/0"


async def start(stack: AsyncExitStack) -> tuple[Any, Pubsub]:
    """One host with its GossipSub, degrees and heartbeat as ours."""
    keys = create_new_key_pair()
    host = new_host(key_pair=keys)
    router = GossipSub([PROTOCOL], 6, 4, 12, heartbeat_interval=1, spam_protection_enabled=False)
    pubsub = Pubsub(host, router)
    await stack.enter_async_context(host.run(listen_addrs=[multiaddr.Multiaddr(ANY)]))
    await stack.enter_async_context(background_trio_service(pubsub))
    await stack.enter_async_context(background_trio_service(router))
    await pubsub.wait_until_ready()
    return host, pubsub


async def measure(machines: int, links: int, burst: int, payload: int, patience: float) -> None:
    """Measure, print, and end the process."""
    got = [set[bytes]() for _ in range(machines)]

    async def read(number: int, subscription: Any) -> None:
        while True:
            got[number].add((await subscription.get()).data)

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        hosts = [await start(stack) for _ in range(machines)]
        for number, (_, pubsub) in enumerate(hosts):
            nursery.start_soon(read, number, await pubsub.subscribe(TOPIC))
        for number, (host, _) in enumerate(hosts):
            for step in range(1, links // 2 + 1):
                other = hosts[(number + step) % machines][0]
                await host.connect(info_from_p2p_addr(other.get_addrs()[0]))
        await trio.sleep(5)  # meshes form
        sent = [number.to_bytes(4, "big") + bytes(payload - 4) for number in range(burst)]
        expected = burst * (machines - 1)

        def arrived() -> int:
            """Own messages, which this library gives back to their publisher too, are not counted."""
            return sum(
                data in got[n] for k, data in enumerate(sent) for n in range(machines) if n != k % machines
            )

        cpu, wall, published = time.process_time(), time.perf_counter(), 0
        with trio.move_on_after(patience):
            for number, data in enumerate(sent):
                await hosts[number % machines][1].publish(TOPIC, data)
                published += 1
            while arrived() < expected:  # noqa: ASYNC110 - its subscriptions have no event for it
                await trio.sleep(0.2)
        cpu, wall, count = time.process_time() - cpu, time.perf_counter() - wall, arrived()
        figures: dict[str, float | str] = {"lost": expected - count, "published": published, "wall_s": wall}
        figures |= {"cpu_ms_per_delivery": 1000 * cpu / count} if count else {"error": "nothing arrived"}
        print(json.dumps(figures), flush=True)
        os._exit(0)  # this library's services do not end cleanly (0.8.1 corrupts Trio's cancel scopes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("machines", 30), ("links", 8), ("burst", 200), ("payload", 400), ("patience", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)

    async def bounded() -> None:
        with trio.fail_after(options.patience + 60):
            await measure(options.machines, options.links, options.burst, options.payload, options.patience)

    try:
        trio.run(bounded)
    except BaseException as error:  # noqa: BLE001 - whatever stops the peer library is told, not hidden
        print(json.dumps({"error": repr(error)[:400]}))


if __name__ == "__main__":
    main()
