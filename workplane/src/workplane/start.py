"""What an agent starts from: a key, and what the machine says of the pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from attrs import frozen

from magik_proto.credentials import MembershipError
from magik_proto.identity import Identity
from magik_proto.membership import MembershipPolicy
from magik_proto.passes import PassPolicy
from workplane.answers import Passport
from workplane.clock import wall_ms
from workplane.config import Config
from workplane.credentials import Credentials
from workplane.machine import CONFLICT, Machine, MachineError, patiently
from workplane.manual import manual_pod


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


@frozen(kw_only=True)
class Origin:
    """Who this agent is and who answers for it. By hand there is no machine, and no pass."""

    identity: Identity
    machine: Machine | None
    passport: Passport | None
    pod: Mapping[str, Any]


async def find_origin(config: Config, credentials: Credentials | None) -> Origin:
    """Takes as long as the machine is away. Raises `StartError`."""
    if credentials is None:
        if config.identity is None:
            raise StartError("without a machine a key is needed: --privkey (BEE_PRIVATE_KEY_B64)")
        structlog.get_logger().warning(
            "no-machine",
            missing="a pass (so only open fabrics admit this agent), exec probes, restarts, Services, healing",
        )
        return Origin(identity=config.identity, machine=None, passport=None, pod=manual_pod(config))
    identity = config.identity or credentials.identity or Identity.generate()
    machine = Machine(config.machine_api, credentials.token)
    try:
        passport = await patiently(lambda: _ask_for_pass(config, identity, machine), unless=CONFLICT)
    except MachineError as error:
        raise StartError(
            f"{error}. This pod's token has been used for another key: whoever did so is not this agent; delete the pod"
        ) from error
    return Origin(identity=identity, machine=machine, passport=passport, pod=passport.pod)


async def _ask_for_pass(config: Config, identity: Identity, machine: Machine) -> Passport:
    """A pass that holds by our own check: with another the others would refuse us, and nobody here would know why."""
    passport = await machine.passport(identity.peer_id)
    if passport.shown is None and passport.root is None:
        return passport
    policy = PassPolicy(MembershipPolicy(passport.root), config.namespace)
    try:
        proved = policy.check(identity.peer_id, passport.shown, wall_ms())
    except MembershipError as error:
        raise MachineError("the machine's pass", str(error)) from error
    if (str(proved.resource), proved.pod_name) != (config.workload_id, config.pod):
        raise MachineError("the machine's pass", f"it is of {proved.pod_name} of {proved.resource}")
    return passport
