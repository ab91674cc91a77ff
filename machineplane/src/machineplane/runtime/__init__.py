"""The runtime room: containers on this machine. Names are loaded when first used.

(The helper processes import modules below this package and must stay small, so nothing is imported here.)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from machineplane.runtime.agent_calls import ContainerSaid, Words
    from machineplane.runtime.bundle import HostPolicy, check_spec
    from machineplane.runtime.changes import PodEvent
    from machineplane.runtime.config import RuntimeConfig
    from machineplane.runtime.engine import EngineStatus
    from machineplane.runtime.errors import (
        EngineError,
        EngineUnavailable,
        HelperError,
        HelperLost,
        LogsUnavailable,
        PodError,
        PodExists,
        PodNotFound,
        PodSpecError,
        RuntimeFault,
        SessionUnavailable,
        StopFailed,
    )
    from machineplane.runtime.execs import ExecRequest
    from machineplane.runtime.images import ImageError, ImageNotFound, ImageStore
    from machineplane.runtime.logs import LogOptions
    from machineplane.runtime.network import PodAddress, PodNetwork
    from machineplane.runtime.pods import Runtime, open_runtime
    from machineplane.runtime.services import Agents
    from machineplane.runtime.status import (
        AgentSaid,
        ContainerStatus,
        PodGone,
        PodStatus,
        Termination,
        pod_status_json,
    )
    from machineplane.runtime.zygote_client import Zygote, ZygoteReport, start_zygote

_HOMES = {
    "agent_calls": ("ContainerSaid", "Words"),
    "bundle": ("HostPolicy", "check_spec"),
    "changes": ("PodEvent",),
    "config": ("RuntimeConfig",),
    "engine": ("EngineStatus",),
    "errors": (
        "EngineError",
        "EngineUnavailable",
        "HelperError",
        "HelperLost",
        "LogsUnavailable",
        "PodError",
        "PodExists",
        "PodNotFound",
        "PodSpecError",
        "RuntimeFault",
        "SessionUnavailable",
        "StopFailed",
    ),
    "execs": ("ExecRequest",),
    "images": ("ImageError", "ImageNotFound", "ImageStore"),
    "logs": ("LogOptions",),
    "network": ("PodAddress", "PodNetwork"),
    "pods": ("Runtime", "open_runtime"),
    "services": ("Agents",),
    "status": ("AgentSaid", "ContainerStatus", "PodGone", "PodStatus", "Termination", "pod_status_json"),
    "zygote_client": ("Zygote", "ZygoteReport", "start_zygote"),
}

__all__ = [
    "AgentSaid",
    "Agents",
    "ContainerSaid",
    "ContainerStatus",
    "EngineError",
    "EngineStatus",
    "EngineUnavailable",
    "ExecRequest",
    "HelperError",
    "HelperLost",
    "HostPolicy",
    "ImageError",
    "ImageNotFound",
    "ImageStore",
    "LogOptions",
    "LogsUnavailable",
    "PodAddress",
    "PodError",
    "PodEvent",
    "PodExists",
    "PodGone",
    "PodNetwork",
    "PodNotFound",
    "PodSpecError",
    "PodStatus",
    "Runtime",
    "RuntimeConfig",
    "RuntimeFault",
    "SessionUnavailable",
    "StopFailed",
    "Termination",
    "Words",
    "Zygote",
    "ZygoteReport",
    "check_spec",
    "open_runtime",
    "pod_status_json",
    "start_zygote",
]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
