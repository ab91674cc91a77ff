"""What is written on links is read again, and nothing else is taken for it."""

from ipaddress import IPv4Address

import pytest

from machineplane.podnet.marks import (
    NAME_LIMIT,
    BridgeMark,
    PodMark,
    bridge_mac,
    is_bridge_name,
    is_uid,
    link_name,
    pod_mac,
)


def test_marks_survive_writing_and_reading() -> None:
    mark = PodMark("5ad2-x", IPv4Address("10.0.0.9"))
    assert PodMark.parse(str(mark)) == mark
    for value in (True, False):
        assert BridgeMark.parse(str(BridgeMark(value))) == BridgeMark(value)


@pytest.mark.parametrize(
    "alias", [None, "", "eth0", "magik-pod x", "magik-pod x 10.0.0.300", "magik-pod a b c"]
)
def test_other_texts_are_no_marks(alias: str | None) -> None:
    assert PodMark.parse(alias) is None
    assert BridgeMark.parse(alias) is None


def test_names_fit_and_differ() -> None:
    names = {link_name(f"pod-{number}") for number in range(1000)}
    assert len(names) == 1000
    assert all(len(name) <= NAME_LIMIT for name in names)


def test_an_alias_always_fits_into_the_kernels_255_bytes() -> None:
    longest = "x" * 128
    assert is_uid(longest) and not is_uid(longest + "x")
    assert len(str(PodMark(longest, IPv4Address("255.255.255.255")))) < 255


@pytest.mark.parametrize("uid", ["", "a b", "a\nb", "ä"])
def test_uids_that_would_harm_a_mark_are_refused(uid: str) -> None:
    assert not is_uid(uid)


@pytest.mark.parametrize(
    ("name", "good"),
    [("magik0", True), ("a" * 15, True), ("a" * 16, False), ("0a", False), ('a"; drop', False), ("", False)],
)
def test_bridge_names(name: str, good: bool) -> None:
    assert is_bridge_name(name) is good


def test_link_addresses_are_unicast_and_locally_administered() -> None:
    for mac in (bridge_mac("magik0"), pod_mac(IPv4Address("10.0.0.9"))):
        first = int(mac.split(":")[0], 16)
        assert len(mac.split(":")) == 6 and first & 1 == 0 and first & 2 == 2
    assert pod_mac(IPv4Address("10.0.0.9")) == "0a:58:0a:00:00:09"
