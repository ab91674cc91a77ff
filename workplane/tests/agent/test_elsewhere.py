"""What a pod has is of no use anywhere but where it belongs: real agents, real sockets, honest and stolen credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rig import MACHINE, OWNER, ROOT, WEB, Agent, pass_of, pod, wall_ms

from magik_mesh import MeshError, NodeConfig, open_node
from magik_mesh.testing import until
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import ResourceId
from workplane.machine import Machine, MachineError

RECORD = "/workplane/record/1.0.0"
OTHER = ResourceId("other", "Deployment", "web")


def intruder(identity: Identity, victim: Agent, member: bytes | None, **changes: Any) -> NodeConfig:
    """A node that would itself admit anybody: the refusal is the agent's."""
    fields = {"plane": "magik-workload/1", "policy": MembershipPolicy(None), **changes}
    return NodeConfig(
        host="127.0.0.1",
        port=0,
        identity=identity,
        member=member,
        bootstrap=(BootstrapPeer.parse(victim.api.peer),),
        **fields,
    )


async def refusal(config: NodeConfig) -> str:
    async with open_node(config) as node:
        with pytest.raises(MeshError) as error:
            await node.call(config.bootstrap[0].peer, RECORD, {}, timeout=10)
        assert not any(peer.connected for peer in node.peers())
        return str(error.value)


async def test_an_agent_meets_nobody_but_pods_of_its_namespace(tmp_path: Path) -> None:
    thief = Identity.generate()
    invite = ROOT.invite(wall_ms())
    shown: dict[str, bytes | None] = {
        "pass.missing": None,
        "pass.namespace": pass_of(thief.peer_id, "web-9", OTHER),
        "pass.other-identity": pass_of(MACHINE.peer_id, "web-9"),
        "pass.malformed": invite.accept(thief, wall_ms()).encode(),  # a machine's membership
    }
    async with pod(tmp_path) as one:
        await until(one.api.ready, 30)
        for rule, member in shown.items():
            assert rule in await refusal(intruder(thief, one, member)), rule
        # On the machines' plane not even the protocol is common.
        machines = MembershipPolicy(ROOT.peer_id)
        await refusal(intruder(thief, one, shown["pass.malformed"], plane="magik-machine/1", policy=machines))
        assert one.process.poll() is None


async def test_a_pod_s_pass_opens_no_machine_s_socket(tmp_path: Path) -> None:
    key = Identity.generate()
    member = ROOT.invite(wall_ms()).accept(OWNER, wall_ms()).encode()
    policy = MembershipPolicy(ROOT.peer_id)
    door = NodeConfig(host="127.0.0.1", port=0, identity=OWNER, member=member, policy=policy)
    async with open_node(door) as machine:
        for plane in ("magik-workload/1", "magik-machine/1"):
            config = NodeConfig(
                host="127.0.0.1",
                port=0,
                identity=key,
                member=pass_of(key.peer_id, "web-1", WEB),
                policy=MembershipPolicy(None),
                plane=plane,
                bootstrap=(BootstrapPeer(OWNER.peer_id, *machine.address),),
            )
            said = await refusal(config)
            assert plane == "magik-workload/1" or "membership.malformed" in said


async def test_a_pod_s_token_gets_nothing_at_another_s_socket_nor_for_another_key(tmp_path: Path) -> None:
    async with pod(tmp_path, "web-1", token="the first") as one, pod(tmp_path, "web-2") as two:
        await until(lambda: one.api.ready() and two.api.ready(), 30)
        key: PeerId = Identity.generate().peer_id
        for url, status in ((f"unix:{two.api.socket}", 401), (f"unix:{one.api.socket}", 409)):
            with pytest.raises(MachineError) as error:
                await Machine(url, "the first").passport(key)
            assert error.value.status == status
