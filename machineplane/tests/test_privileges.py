"""Capabilities as proc(5) shows them."""

from pathlib import Path

import pytest

from machineplane.privileges import missing_privileges


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        ("000001ffffffffff", ()),
        ("0000000000000000", ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")),
        ("0000000000001000", ("CAP_SYS_ADMIN",)),
        ("0000000000200000", ("CAP_NET_ADMIN",)),
    ],
)
def test_what_pods_need_and_this_process_lacks(
    tmp_path: Path, effective: str, missing: tuple[str, ...]
) -> None:
    (tmp_path / "status").write_text(f"Name:\tx:y\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\n")
    assert missing_privileges(tmp_path / "status") == missing
