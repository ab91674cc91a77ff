"""The lab with the daemon itself."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

_PROGRAM = str(Path(sys.executable).with_name("machineplane"))
_TLS = """
import socket, ssl
context = ssl._create_unverified_context()
with socket.create_connection(("{host}", 6443), timeout=5) as plain, context.wrap_socket(plain) as secure:
    print(secure.version())
"""


def test_two_machines_join_survive_a_power_failure_and_leave_nothing(computer: Any) -> None:
    before = computer.everything()
    up = computer.lab("up", "--machines", "2", "--json", "--program", _PROGRAM, "--", "--runtime", "crun")
    machines = json.loads(up.stdout)["machines"]
    assert [len(machine["identity"]) for machine in machines] == [64, 64]
    for machine in machines:
        host = machine["api"].removeprefix("https://").removesuffix(":6443")
        assert computer.python(_TLS.format(host=host)) == "TLSv1.3"
        config = computer.lab("kubeconfig", machine["name"]).stdout
        assert f"server: {machine['api']}\n" in config

    computer.lab("kill", "m0")
    computer.lab("start", "m0")
    after = json.loads(computer.lab("ls", "--json").stdout)["machines"]
    assert [machine["identity"] for machine in after] == [machine["identity"] for machine in machines]
    assert after[0]["pid"] != machines[0]["pid"] and after[1]["pid"] == machines[1]["pid"]

    computer.lab("down")
    assert computer.everything() == before
