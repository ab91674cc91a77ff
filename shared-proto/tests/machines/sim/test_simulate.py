"""The long simulations' command line, in little."""

import json
import subprocess
import sys
from pathlib import Path

SIMULATE = Path(__file__).parents[3] / "simulate"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SIMULATE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_leadership_tells_what_it_found_and_is_the_same_for_the_same_seed() -> None:
    arguments = ("leadership", "--schedules", "30", "--seed", "7", "--jobs", "1")
    runs = [simulate(*arguments) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    found = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    assert (found[0]["schedules"], found[0]["overlaps"], found[0]["double_votes"]) == (30, 0, 0)
    assert found[0]["leaders"] > 5
    for key in ("leaders", "votes", "events"):
        assert found[0][key] == found[1][key]


def test_an_unknown_simulation_is_refused_by_name() -> None:
    run = simulate("weather")
    assert (run.returncode, "leadership" in run.stderr) == (2, True)
