"""The pod of an agent that was started by hand: one app, probed by the URLs of the command line."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from workplane.config import Config


def manual_pod(config: Config) -> dict[str, Any]:
    """A v1 Pod of one container, ``app``."""
    probes = {"livenessProbe": config.liveness_url, "readinessProbe": config.readiness_url}
    container: dict[str, Any] = {"name": "app"}
    container.update({name: _probe(url, config) for name, url in probes.items() if url})
    metadata = {"name": config.pod, "namespace": config.namespace}
    return {"metadata": metadata, "spec": {"containers": [container]}}


def _probe(url: str, config: Config) -> dict[str, Any]:
    parts = urlsplit(url)
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    where = {
        "scheme": parts.scheme.upper(),
        "path": path,
        "port": parts.port or (443 if parts.scheme == "https" else 80),
    }
    return {
        "httpGet": where,
        "periodSeconds": max(1.0, config.health_interval),
        "timeoutSeconds": max(1.0, config.health_timeout),
    }
