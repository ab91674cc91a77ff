"""What a pod says of itself in its record: its ports, where it runs, and which version of the app it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from magik_proto.fields import PORT_NAME
from magik_proto.messages import ResourceId
from workplane.belief import Beliefs
from workplane.clock import wall_ms
from workplane.config import Config
from workplane.ownrecord import Caps, OwnRecord
from workplane.start import Origin

VERSION_LABEL: Final = "app.kubernetes.io/version"


def own_record(config: Config, origin: Origin, beliefs: Beliefs) -> OwnRecord:
    """The replica's record as it starts: not ready."""
    passport = origin.passport
    return OwnRecord(
        identity=origin.identity,
        resource=ResourceId(config.namespace, config.workload_kind, config.workload),
        pod_name=config.pod,
        ordinal=config.ordinal,
        wall=wall_ms,
        random=os.urandom,
        member=passport.shown if passport else None,
        addrs=passport.advertise[:16] if passport else (),
        ports=ports_of(origin.pod),
        caps=_caps(origin, beliefs),
    )


def _caps(origin: Origin, beliefs: Beliefs) -> Caps:
    """Where the replica runs, and which version of the app it is: for whoever chooses among replicas."""
    passport = origin.passport
    caps: dict[str, bool | int | str] = {}
    if passport is None:
        return caps
    proved = beliefs.identify(origin.identity.peer_id, passport.shown)
    if proved is not None:
        caps["machine"] = str(proved.machine)
    if passport.zone is not None:
        caps["zone"] = passport.zone[:256]
    version = (origin.pod["metadata"].get("labels") or {}).get(VERSION_LABEL)
    if isinstance(version, str):
        caps["app_version"] = version[:256]
    return caps


def ports_of(pod: Mapping[str, Any]) -> dict[str, int]:
    """The named ports of a pod's containers, and ``tcp-80`` for one without a name."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            number = port.get("containerPort")
            name = port.get("name") or f"{str(port.get('protocol') or 'tcp').lower()}-{number}"
            if isinstance(number, int) and 0 < number < 65_536 and PORT_NAME.fullmatch(str(name)):
                found[str(name)] = number
    return dict(list(found.items())[:64])
