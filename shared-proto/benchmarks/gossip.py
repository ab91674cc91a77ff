"""Gossip of thirty machines in one process, side by side with py-libp2p's GossipSub, in one run.

    python shared-proto/benchmarks/gossip.py [--machines 30] [--bursts 20 200] [--rounds 1]

For each burst: a fabric is made over loopback, so many signed messages are published by all machines in turn, and every
machine verifies the signature of what it gets before it hands it on. Then the same by py-libp2p, if the environment
variable ``LIBP2P_PYTHON`` names an interpreter that has it (`nox -s bench` sees to that). Ours goes over QUIC with mutual
TLS, theirs over their default transport; both have the same number of machines, the same degrees and heartbeat, and
payloads of about the same size.

``cpu_ms_per_delivery`` is processor time of the whole process between the first publish and the last delivery, by messages
that arrived at a machine for the first time. ``lost`` are deliveries that had not come when patience was over: a large
burst is more than py-libp2p carries in that time, and its figure is then that of what it did carry. A ratio above 1 is in
our favour, null was not measured. Some three minutes; the last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import structlog
import trio
from peers.apart import libp2p_figures

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
LIBP2P_LIMIT_S = 150  # of a run of theirs: it starts its hosts, connects them, and has PATIENCE_S
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
            "cpu_ms_per_delivery": 1000 * cpu / max(1, arrived),
            "lost": expected - arrived,
            "delivered_twice": sum(machine.twice for machine in machines),
            "wall_s": wall,
            "links": links,
        }


Round = dict[str, dict[str, Any]]


def causes(error: BaseException) -> Iterator[BaseException]:
    """The errors inside groups of groups: each machine's nursery adds one, and tracebacks stop at ten."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from causes(inner)
    else:
        yield error


def one_round(machines: int, burst: int) -> Round:
    """Ours, then theirs."""
    try:
        ours = trio.run(measure, machines, burst)
    except BaseExceptionGroup as error:
        for cause in causes(error):
            traceback.print_exception(cause)
        raise
    theirs = libp2p_figures(
        "libp2p_gossip.py", LIBP2P_LIMIT_S, machines=machines, links=LINKS, burst=burst, patience=PATIENCE_S
    )
    return {"magik": ours, "libp2p": theirs}


def figures_of(burst: int, rounds: list[Round]) -> dict[str, float]:
    """Medians over the rounds of one burst, named after it."""
    names = ("cpu_ms_per_delivery", "lost", "published", "wall_s", "links", "delivered_twice")
    return {
        f"{who}_burst_{burst}_{name}": round(statistics.median(values), 3)
        for who in ("magik", "libp2p")
        for name in names
        if (values := [r[who][name] for r in rounds if name in r[who]])
    }


def ratio_of(rounds: list[Round]) -> float | None:
    """Theirs by ours, the median over the rounds that have both."""
    name = "cpu_ms_per_delivery"
    ratios = [r["libp2p"][name] / r["magik"][name] for r in rounds if name in r["libp2p"]]
    return round(statistics.median(ratios), 2) if ratios else None


def report(bursts: dict[int, list[Round]]) -> dict[str, Any]:
    """The JSON object."""
    ratios = {f"cpu_per_delivery_burst_{b}_vs_py_libp2p": ratio_of(rounds) for b, rounds in bursts.items()}
    figures: dict[str, Any] = {}
    for burst, rounds in bursts.items():
        figures |= figures_of(burst, rounds)
    figures["notes"] = [
        f"libp2p, burst {burst}: {r['libp2p']['error']}"
        for burst, rounds in bursts.items()
        for r in rounds
        if "error" in r["libp2p"]
    ]
    return {"name": "gossip", "ratios": ratios, "figures": figures}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--machines", type=int, default=30)
    parser.add_argument("--bursts", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    bursts: dict[int, list[Round]] = {burst: [] for burst in options.bursts}
    for _ in range(options.rounds):
        for burst, rounds in bursts.items():
            rounds.append(one_round(options.machines, burst))
            print(json.dumps({"burst": burst, **rounds[-1]}), file=sys.stderr)
    print(json.dumps(report(bursts)))


if __name__ == "__main__":
    main()
