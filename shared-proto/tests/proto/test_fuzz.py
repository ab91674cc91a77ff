"""A short run of the fuzz script: the same that runs for a million inputs by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "fuzz" / "mutate.py"


def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_changed_bytes_are_taken_or_refused_by_a_rule() -> None:
    code, answer, _ = run("--inputs", "5000", "--seed", "2")
    assert (code, answer["failures"], answer["inputs"]) == (0, [], 5000), answer
    assert answer["slowest_ms"] <= 10
    assert answer["growth_bytes"] <= 1 << 20
    assert answer["rules"] > 60, "the inputs reach most of what is refused"


def test_the_seed_says_which_inputs() -> None:
    first, again, other = (run("--inputs", "300", "--seed", seed)[2].splitlines()[:-1] for seed in "334")
    assert first == again != other
