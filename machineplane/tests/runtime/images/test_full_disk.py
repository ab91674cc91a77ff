"""A disk that is full at any step of a pull: nothing half-made stays, it is said so, and with room it works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
HERE = Path(__file__).parent


def test_a_pull_onto_a_full_disk_leaves_nothing_and_works_later(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, HERE / "full_disk.py", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    tried = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    failed = [found for found in tried if found["said"]]
    assert any(found["names"] for found in tried if not found["said"]), "a disk that is large enough takes it"
    assert len(failed) >= 20, "the steps of a pull were passed one after another"
    for found in failed:
        assert found["said"].startswith("StoreUnwritable: "), found
        assert "No space left on device" in found["said"] and "machineplane image prune" in found["said"]
        assert not (found["tmp"] or found["partial"] or found["wrong"] or found["names"]), found
        assert not found["layers"] or len(found["layer"]) == 4, found
        assert found["later"] == "", found
        assert len(found["layer"]) == 4, found
