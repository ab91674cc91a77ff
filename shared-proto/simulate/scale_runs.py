"""Fabrics of thousands of machines by the daemons' own code: one scenario after the other, and what is measured.

The whole run is decided by --seed and replays. The fabric is built once for all scenarios that begin with the
same machines; each scenario runs in a fork of it, so that they do not see each other.

With --out each result is kept at once, beside those that the file has of other scenarios and the same seed; its
`effort` tells how much was measured. With --trace a digest of all messages shows whether a change of the code
changed what machines do: if not, what was measured before it still holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from attrs import asdict, evolve

from magik_mesh.simulation.fabric import Fabric
from magik_mesh.simulation.measure import shape
from magik_mesh.simulation.scenarios import SCENARIOS, Effort
from magik_mesh.simulation.trace import Trace

Builder = Callable[[int, int, None], Fabric]


def main(arguments: list[str]) -> int:
    """Run them; 1 if a scenario broke off."""
    options = _options(arguments)
    gc.disable()  # nothing is to be collected: the fabric lives as long as the process
    results: dict[str, Any] = {}
    by_build: dict[Builder, list[str]] = {}
    for name in options.scenarios:
        by_build.setdefault(SCENARIOS[name].build, []).append(name)
    for build, names in by_build.items():
        results |= _in_fork(lambda build=build, names=names: _run(build, names, options))
    fabric = results.pop("fabric", {})
    ordered = {name: results[name] for name in options.scenarios if name in results}
    print(json.dumps(_found(options, fabric, ordered)))
    return 0 if len(ordered) == len(options.scenarios) else 1


def _found(options: argparse.Namespace, fabric: dict[str, Any], scenarios: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "scale",
        "nodes": options.nodes,
        "seed": options.seed,
        "python": platform.python_version(),
        "fabric": fabric,
        "scenarios": scenarios,
    }


def _keep(options: argparse.Namespace, fabric: dict[str, Any], name: str, results: dict[str, Any]) -> None:
    """Write the result of a scenario down at once, beside those of others with the same seed; one that broke
    off leaves no older result of its name either."""
    file: Path = options.out / f"scale-{options.nodes}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    kept = before if before.get("seed") == options.seed else {"fabric": {}, "scenarios": {}}
    scenarios = {other: figures for other, figures in kept["scenarios"].items() if other != name} | results
    ordered = {name: scenarios[name] for name in SCENARIOS if name in scenarios}
    file.write_text(json.dumps(_found(options, fabric or kept["fabric"], ordered), indent=1) + "\n")


def _run(build: Builder, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    before, begin = _rss(), process_time()
    fabric = build(options.nodes, options.seed, None)
    figures = {
        "bytes_per_node": (_rss() - before) // options.nodes,
        "cpu_s": round(process_time() - begin, 1),
        "events": fabric.network.stats.events,
        **shape(fabric),
    }
    gc.freeze()
    results: dict[str, Any] = {"fabric": figures} if build is SCENARIOS["calm"].build else {}
    for name in names:
        result = _in_fork(lambda name=name: {name: _one(name, fabric, options)})
        if options.out is not None:
            _keep(options, results.get("fabric", {}), name, result)
        results |= result
        print(f"{name}: {json.dumps(results.get(name))}", file=sys.stderr, flush=True)
    return results


def _one(name: str, fabric: Fabric, options: argparse.Namespace) -> dict[str, Any]:
    trace = Trace(fabric) if options.trace else None
    begin, wall, events = process_time(), monotonic(), fabric.network.stats.events
    virtual = fabric.network.now
    figures = SCENARIOS[name].run(fabric, options.effort)
    events, cpu = fabric.network.stats.events - events, process_time() - begin
    return (
        figures
        | ({} if trace is None else {"trace": trace.hexdigest()})
        | {
            "effort": asdict(options.effort),
            "virtual_s": round(fabric.network.now - virtual, 1),
            "events": events,
            "events_per_cpu_s": round(events / cpu),
            "cpu_s": round(cpu, 1),
            "wall_s": round(monotonic() - wall, 1),
        }
    )


def _in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do it in a child that has all we have, and nothing of what it does comes back but the result."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        print("FAILED: a scenario broke off, see above; the same seed shows it again", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(text)
    return found


def _rss() -> int:
    """Bytes of this process that are in memory, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="names, with commas between")
    parser.add_argument("--tenders", type=int, default=Effort().tenders)
    parser.add_argument("--lookups", type=int, default=Effort().lookups)
    parser.add_argument("--lookup-wait", type=float, default=Effort().lookup_wait_s, help="seconds")
    parser.add_argument("--tender-wait", type=float, default=Effort().tender_wait_s, help="seconds")
    parser.add_argument("--trace", action="store_true", help="a digest of all messages")
    parser.add_argument("--out", type=Path, help="a folder for scale-NODES.json")
    options = parser.parse_args(arguments)
    options.scenarios = options.scenarios.split(",")
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown or options.nodes < 100:
        parser.error(f"no scenario {', '.join(unknown)}" if unknown else "--nodes is at least 100")
    options.effort = evolve(
        Effort(),
        tenders=options.tenders,
        lookups=options.lookups,
        lookup_wait_s=options.lookup_wait,
        tender_wait_s=options.tender_wait,
    )
    return options
