"""Long simulations by hand: ``python shared-proto/simulate NAME [options]``, or ``nox -s simulate -- NAME …``.

    scale       a fabric of many machines, under churn, loss, lies, sybils, sudden death and partition
    plot        a folder of scale's results as pictures over the number of machines
    leadership  schedules of crashes, partitions and lost disks; counts overlapping leases, shared tokens and double votes

Each prints one JSON object as its last line; ``--seed`` decides all of it, ``NAME --help`` tells the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import leadership_runs
import scale_runs


def _plot(arguments: list[str]) -> int:
    import plot  # needs matplotlib, which nothing else does

    return plot.main(arguments)


SIMULATIONS: Mapping[str, Callable[[list[str]], int]] = {
    "leadership": leadership_runs.main,
    "scale": scale_runs.main,
    "plot": _plot,
}


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if not arguments or arguments[0] not in SIMULATIONS:
        print(__doc__, file=sys.stderr)
        return 2
    return SIMULATIONS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
