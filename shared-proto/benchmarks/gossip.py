"""Gossip of thirty machines in one process, side by side with py-libp2p's GossipSub, in one run.

    python shared-proto/benchmarks/gossip.py [--machines 30] [--burst 200] [--rounds 3]

Each round: a fabric is made over loopback, a burst of signed messages is published by all machines in turn, and every
machine verifies the signature of what it gets before it hands it on. Then the same by py-libp2p, if the environment
variable ``LIBP2P_PYTHON`` names an interpreter that has it (`nox -s bench` sees to that). Ours goes over QUIC with mutual
TLS, theirs over their default transport; both have the same number of machines, the same degrees and heartbeat, and
payloads of about the same size.

``cpu_ms_per_delivery`` is processor time of the whole process between the first publish and the last delivery, by messages
that arrived at a machine for the first time. A ratio above 1 is in our favour, null was not measured; ``lost`` are
deliveries that had not come when patience was over. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
import trio

from magik_mesh import Accept, Judgement, Node, NodeConfig, Verdict, open_node
from magik_mesh.testing import peers_of
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Disposal, decode_as, encode_message
from magik_proto.signing import new_nonce, sign, verify

TOPIC = "bench"
LINKS = 8  # connections for each machine of theirs; ours connect with all, as machines of a small fabric do
SETTLE_S = 120
PATIENCE_S = 60
Figures = dict[str, float]


def make_message(identity: Identity, number: int) -> bytes:
    """A signed message of some 400 bytes."""
    disposal = Disposal(
        signer=identity.peer_id,
        namespace="default",
        kind="Deployment",
        name="x" * 63,
        uid=UUID(int=number),
        generation=1,
        timestamp=time.time_ns() // 1_000_000,
        nonce=new_nonce(),
    )
    return encode_message(sign(disposal, identity))


class Machine:
    """A mesh node that counts what it gets."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.got: dict[bytes, None] = {}
        self.twice = 0
        self.node: Node | None = None

    async def judge(self, source: object, payload: bytes) -> Judgement:
        """As the daemon does: decode, then verify."""
        try:
            message = decode_as(Disposal, payload)
            verify(message)
        except RemoteProtocolError:
            return Verdict.REJECT
        self.twice += payload in self.got
        self.got[payload] = None
        return Accept(message.signer)


async def start(stack: AsyncExitStack, machine: Machine, known: tuple[BootstrapPeer, ...]) -> Node:
    """The machine's node, subscribed."""
    config = NodeConfig(
        host="127.0.0.1",
        port=0,
        identity=machine.identity,
        policy=MembershipPolicy(None),
        bootstrap=known,
    )
    node = machine.node = await stack.enter_async_context(open_node(config))
    node.subscribe(TOPIC, machine.judge)
    return node


async def measure(count: int, burst: int) -> Figures:
    """One fabric, one burst."""
    machines = [Machine(Identity.generate()) for _ in range(count)]
    async with AsyncExitStack() as stack:
        known: tuple[BootstrapPeer, ...] = ()
        nodes: list[Node] = []
        for machine in machines:
            nodes.append(await start(stack, machine, known))
            known = (BootstrapPeer(nodes[0].id, *nodes[0].address),)
        with trio.move_on_after(SETTLE_S):
            while any(len(peers_of(node)) < count - 1 for node in nodes):  # noqa: ASYNC110 - there is no event
                await trio.sleep(0.5)
        await trio.sleep(5)  # as theirs: meshes form
        links = statistics.mean(len(peers_of(node)) for node in nodes)
        sent = [make_message(machines[k % count].identity, k) for k in range(burst)]
        cpu, wall = time.process_time(), time.perf_counter()
        for number, message in enumerate(sent):
            await nodes[number % count].publish(TOPIC, message)
        expected = burst * (count - 1)
        with trio.move_on_after(PATIENCE_S):
            while sum(len(m.got) for m in machines) < expected:  # noqa: ASYNC110 - polled as theirs
                await trio.sleep(0.2)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        arrived = sum(len(machine.got) for machine in machines)
        return {
            "cpu_ms_per_delivery": 1000 * cpu / arrived,
            "lost": expected - arrived,
            "delivered_twice": sum(machine.twice for machine in machines),
            "wall_s": wall,
            "links": links,
        }


def measure_libp2p(count: int, burst: int) -> dict[str, Any]:
    """What `peers/libp2p_gossip.py` says; ``error`` if there is nothing to say."""
    python = os.environ.get("LIBP2P_PYTHON")
    if not python:
        return {"error": "LIBP2P_PYTHON names no interpreter that has it"}
    script = Path(__file__).parent / "peers" / "libp2p_gossip.py"
    options = {"machines": count, "links": LINKS, "burst": burst, "patience": PATIENCE_S}
    args = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([python, str(script), *args], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return {"error": f"it ended with {done.returncode}: {done.stderr[-200:]}"}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def report(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The JSON object: medians over the rounds."""
    ratios = [
        r["libp2p"]["cpu_ms_per_delivery"] / r["magik"]["cpu_ms_per_delivery"]
        for r in rounds
        if "error" not in r["libp2p"]
    ]
    figures: dict[str, Any] = {
        f"{who}_{name}": round(statistics.median(values), 3)
        for who in ("magik", "libp2p")
        for name in ("cpu_ms_per_delivery", "lost", "wall_s", "links", "delivered_twice")
        if (values := [r[who][name] for r in rounds if name in r[who]])
    }
    figures["notes"] = [f"libp2p: {r['libp2p']['error']}" for r in rounds if "error" in r["libp2p"]]
    ratio = round(statistics.median(ratios), 2) if ratios else None
    return {"name": "gossip", "ratios": {"cpu_per_delivery_vs_py_libp2p": ratio}, "figures": figures}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machines", type=int, default=30)
    parser.add_argument("--burst", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    rounds = []
    for _ in range(options.rounds):
        ours = trio.run(measure, options.machines, options.burst)
        rounds.append({"magik": ours, "libp2p": measure_libp2p(options.machines, options.burst)})
        print(json.dumps(rounds[-1]), file=sys.stderr)
    print(json.dumps(report(rounds)))


if __name__ == "__main__":
    main()
