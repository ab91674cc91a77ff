"""The long simulations' command line, in little."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("flags", [(), ("--twins",), ("--twins", "--settle")])
def test_a_failed_schedule_is_replayed_with_all_that_decides_it(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SIMULATE))
    runs = importlib.import_module("leadership_runs")
    how = runs.How(seconds=7, per_second=3, twins="--twins" in flags, settle="--settle" in flags)
    name, *arguments = how.replay(41).split()
    run = simulate(name, *arguments, "--jobs", "1")
    found = json.loads(run.stdout.splitlines()[-1])
    assert (found["seed"], found["schedules"]) == (41, 1), run.stderr
    assert (found["seconds_each"], found["breaks_per_second"]) == (7, 3)
    assert (found["twins"], found["settle"]) == (how.twins, how.settle)
    assert found["events"] == runs.run_one(41, how).events


def test_an_unknown_simulation_is_refused_by_name() -> None:
    run = simulate("weather")
    assert (run.returncode, "leadership" in run.stderr) == (2, True)


def test_scale_runs_its_scenarios_and_keeps_the_results(tmp_path: Path) -> None:
    few = ("--nodes", "100", "--tenders", "1", "--lookups", "6", "--lookup-wait", "2")
    run = simulate("scale", *few, "--scenarios", "calm,liars", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert list(found["scenarios"]) == ["calm", "liars"]
    assert found["scenarios"]["calm"]["delivery"] == 1.0
    assert found["fabric"]["bytes_per_node"] > 0
    assert json.loads((tmp_path / "scale-100.json").read_text()) == found


def test_scale_names_a_scenario_that_there_is_not() -> None:
    run = simulate("scale", "--scenarios", "calm,earthquake")
    assert (run.returncode, "no scenario earthquake" in run.stderr) == (2, True)


def test_scale_adds_to_results_of_the_same_seed_and_to_no_others(tmp_path: Path) -> None:
    few = ("--nodes", "100", "--lookups", "3", "--lookup-wait", "1", "--tender-wait", "1", "--trace")

    def run(*more: str) -> dict[str, str]:
        done = simulate("scale", *few, *more, "--out", str(tmp_path))
        assert done.returncode == 0, done.stderr
        kept = json.loads((tmp_path / "scale-100.json").read_text())
        return {name: figures["trace"] for name, figures in kept["scenarios"].items()}

    first = run("--scenarios", "loss-5", "--tenders", "1")
    both = run("--scenarios", "calm", "--tenders", "1")
    assert list(both) == ["calm", "loss-5"]
    assert both["loss-5"] == first["loss-5"] != both["calm"]
    assert run("--scenarios", "calm", "--tenders", "1") == both  # the same messages
    assert list(run("--scenarios", "calm", "--tenders", "1", "--seed", "2")) == ["calm"]
