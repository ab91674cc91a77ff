"""Benchmarks of py-libp2p, run by the interpreter of the environment that has it, beside ours."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def libp2p_figures(script: str, seconds: float, **options: float) -> dict[str, Any]:
    """The figures that ``script`` of this directory prints in its last line; ``error`` if there are none.

    ``options`` become ``--name value``. After ``seconds`` it is ended. The environment variable ``LIBP2P_PYTHON`` names the
    interpreter.
    """
    python = os.environ.get("LIBP2P_PYTHON")
    if not python:
        return {"error": "LIBP2P_PYTHON names no interpreter that has it"}
    args = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [python, str(Path(__file__).parent / script), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"no figures within {seconds:g} s"}
    if done.returncode or not done.stdout.strip():
        return {"error": f"it ended with {done.returncode}: {done.stderr[-200:]}"}
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
