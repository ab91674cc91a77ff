"""Draws each figure over the size of the fabric: ``plot FOLDER`` reads its scale-*.json, writes scale.svg and .png,
and the same figures as a table into scale.md.

What a tender costs depends on how many there were and how long they were waited for, as its ids are told again
at heartbeats: such figures are joined by a line only where the effort was the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# figure, title, unit of the axis
PANELS = (
    ("right", "lookups right", "share"),
    ("hops", "hops of a lookup", "steps from the own table"),
    ("queries", "queries of a lookup", "calls"),
    ("delivery", "tenders delivered", "share of machines"),
    ("s_to_99", "time until 99 % have a tender", "s"),
    ("frames_per_node", "gossip frames a tender", "frames a machine"),
    ("bytes_per_node", "gossip bytes a tender", "bytes a machine"),
    ("bids", "bids a tender", "bids"),
    ("connections", "connections", "a machine"),
    ("known_peers", "routing table", "contacts a machine"),
    ("bytes_per_node_of_fabric", "memory in the simulator", "bytes a machine"),
)
COLUMNS = frozenset(key for key, _, _ in PANELS) - {"bytes_per_node_of_fabric"}
COUNTED = ("worst_delivery", "placed", "fresh_found", "at_once_delivery", "parted_delivery", "later_s_to_99")
BY_EFFORT = ("frames_per_node", "bytes_per_node")


def main(arguments: list[str]) -> int:
    """Draw what is there; a scenario that was not run at some size has a gap there."""
    parser = argparse.ArgumentParser(prog="plot", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    runs = sorted((json.loads(p.read_text()) for p in folder.glob("scale-*.json")), key=_nodes)
    if not runs:
        print(f"{folder} holds no scale-*.json: run scale --out {folder} first", file=sys.stderr)
        return 1
    plt.rcParams["svg.hashsalt"] = "magik"  # the same drawing, the same bytes
    figure, axes = plt.subplots(4, 3, figsize=(14, 14), constrained_layout=True)
    for axis, (key, title, unit) in zip(axes.flat, PANELS, strict=False):
        _panel(axis, runs, key, title, unit)
    _legend(axes.flat[len(PANELS)], axes.flat[0])
    for suffix in ("svg", "png"):
        figure.savefig(
            folder / f"scale.{suffix}", dpi=110, metadata={"Date": None} if suffix == "svg" else None
        )
    (folder / "scale.md").write_text(_table(runs))
    print(json.dumps({"name": "plot", "sizes": [_nodes(run) for run in runs]}))
    return 0


def _table(runs: list[dict[str, Any]]) -> str:
    """A line for each scenario and size; figures that one does not have are empty."""
    columns = ("scenario", "machines", "tenders", *(key for key, _, _ in PANELS if key in COLUMNS), *COUNTED)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name in dict.fromkeys(name for run in runs for name in run["scenarios"]):
        for run in runs:
            figures = run["scenarios"].get(name)
            if figures is not None:
                cells = ("" if figures.get(key) is None else f"{figures[key]:g}" for key in columns[3:])
                lines.append(f"| {name} | {_nodes(run)} | {figures['tenders']} | " + " | ".join(cells) + " |")
    return "Made by `plot` of scale-*.json; times in seconds.\n\n" + "\n".join(lines) + "\n"


def _nodes(run: dict[str, Any]) -> int:
    return int(run["nodes"])


def _panel(axis: Any, runs: list[dict[str, Any]], key: str, title: str, unit: str) -> None:
    names = list(dict.fromkeys(name for run in runs for name in run["scenarios"]))
    for number, name in enumerate(names):
        style = "o-" if number < 5 else "s--"
        for points in _lines(runs, name, key):
            axis.plot(
                *zip(*points, strict=True), style, label=name, color=f"C{number}", markersize=4, alpha=0.8
            )
    axis.set_xscale("log")
    axis.set_title(title)
    axis.set_ylabel(unit)
    axis.set_xlabel("machines")
    axis.grid(visible=True, alpha=0.3)
    if unit.startswith("share"):
        axis.set_ylim(0.9, 1.005)
    elif key == "s_to_99":
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, axis.get_ylim()[1] * 1.1)


def _lines(runs: list[dict[str, Any]], name: str, key: str) -> list[list[tuple[int, float]]]:
    """Points that are to be joined."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        value = _value(run, name, key)
        if value is not None:
            effort = run["scenarios"][name].get("effort") if key in BY_EFFORT else None
            lines.setdefault(repr(effort), []).append((run["nodes"], value))
    return list(lines.values())


def _value(run: dict[str, Any], name: str, key: str) -> float | None:
    if key == "bytes_per_node_of_fabric":
        return run["fabric"].get("bytes_per_node") if name == "calm" else None
    value: float | None = run["scenarios"].get(name, {}).get(key)
    return value


def _legend(axis: Any, source: Any) -> None:
    axis.axis("off")
    handles: dict[str, Any] = {}
    for panel in source.figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    axis.legend(handles.values(), handles.keys(), loc="center", title="scenario")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
