"""nftables through its library, in a namespace of the tests' own."""

import pytest

from machineplane.linux import nft

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("machine")]


def test_commands_take_effect_and_their_output_comes_back() -> None:
    nft.run("add table ip t1\nadd chain ip t1 c")
    assert nft.tables("ip") == {"t1"}
    assert "chain c" in nft.run("list table ip t1")
    nft.delete_table("ip", "t1")
    nft.delete_table("ip", "t1")
    assert nft.tables("ip") == frozenset()


def test_all_or_nothing() -> None:
    with pytest.raises(nft.NftRefused, match="nftables refused 'add table ip t2'") as caught:
        nft.run("add table ip t2\nadd rule ip t2 none accept")
    assert "No such file or directory" in caught.value.detail
    assert nft.tables("ip") == frozenset()


def test_a_syntax_error_is_quoted() -> None:
    with pytest.raises(nft.NftRefused, match="syntax error"):
        nft.run("nonsense")
