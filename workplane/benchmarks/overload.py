"""What is lost of requests to three replicas that a computer has no time for.

    python workplane/benchmarks/overload.py [--rate 40] [--seconds 10] [--busy 3] [--nice 5]

A client's agent and three replicas' agents, each with its app, on this computer's loopback, the replicas at a lower priority
(``--nice``), and processes that only take time (``--busy``). Requests come at a fixed rate, each by a connection of its own,
and are given 20 s. Prints one JSON object: requests, those lost by error, seconds of the median and the longest answer, and
how often a replica was taken for dead. To compare versions, run them in turn with the same arguments.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "traffic"))
from pod_process import ANSWER
from test_failover import WEB, record_of
from traffic_support import Machine, Pod, a_port, pod, unique, wall

from magik_mesh.testing import peers_of, until

SEEDS = (2, 3, 4)
ANSWER_S = 20.0


async def ask(place: tuple[str, int]) -> None:
    async with await trio.open_tcp_stream(*place) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        answer = b""
        while len(answer) < len(ANSWER):
            chunk = await stream.receive_some()
            if not chunk:
                raise EOFError("no whole answer")
            answer += bytes(chunk)


async def load(host: str, port: int, rate: float, seconds: float) -> None:
    """In a process of its own: prints what came of each request, its seconds and the error's name."""
    found: list[tuple[float, str]] = []

    async def request() -> None:
        began, error = trio.current_time(), ""
        try:
            with trio.fail_after(ANSWER_S):
                await ask((host, port))
        except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as problem:
            error = type(problem).__name__
        found.append((trio.current_time() - began, error))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(int(rate * seconds)):
            await trio.sleep_until(start + number / rate)
            nursery.start_soon(request)
    print(json.dumps(found))


async def keep_records(client: Pod) -> None:
    """As discovery would."""
    while True:
        now = wall()
        records = [attrs.evolve(record_of(seed), ts=now + 20_000, version=now) for seed in SEEDS]
        client.catalog.take(records, now)
        await trio.sleep(3.0)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    machine, name, port = Machine(), unique("web"), a_port()
    machine.serve(name, port, workloads=(WEB,))
    script = str(Path(__file__).parents[1] / "tests" / "traffic" / "pod_process.py")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(pod(machine, 1, "client"))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        for seed in SEEDS:
            arguments = [str(seed), str(client.node.id), str(client.node.address[1]), name, str(port)]
            command = ["nice", "-n", str(options.nice), sys.executable, script, *arguments]
            nursery.start_soon(_run, command)
        await until(lambda: len(peers_of(client.node)) == len(SEEDS), 60.0)
        nursery.start_soon(keep_records, client)
        (address,) = await client.resolve(f"{name}.default")
        for _ in range(options.busy):
            nursery.start_soon(_run, [sys.executable, "-c", "while True: pass"])
        what = [address, str(port), str(options.rate), str(options.seconds)]
        command = [sys.executable, __file__, "--load", *what]
        done = await trio.run_process(command, capture_stdout=True)
        torn_down = client.traffic.router.signs.torn_down
        nursery.cancel_scope.cancel()
    found = json.loads(done.stdout)
    answers = [took for took, error in found if not error]
    return {
        "requests": len(found),
        "lost": dict(Counter(error for _, error in found if error)),
        "median_s": round(statistics.median(answers), 2) if answers else None,
        "longest_s": round(max(answers), 2) if answers else None,
        "taken_for_dead": torn_down,
    }


async def _run(command: list[str]) -> None:
    await trio.run_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def main() -> None:
    if sys.argv[1:2] == ["--load"]:
        host, port, rate, seconds = sys.argv[2:]
        trio.run(load, host, int(port), float(rate), float(seconds))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--busy", type=int, default=3, help="processes that only take time")
    parser.add_argument("--nice", type=int, default=5, help="of the replicas")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    print(json.dumps(trio.run(measure, parser.parse_args())))


main()
