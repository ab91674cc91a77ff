"""A client of the application without a network, and objects to send."""

import json
from typing import Any

from attrs import frozen
from kubeapi_memory import MemoryBackend

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def deployment(
    name: str = "web", replicas: int = 2, image: str = "nginx:1.25", **extra: Any
) -> dict[str, Any]:
    """A small, valid Deployment."""
    labels = {"app": name}
    container = {"name": "main", "image": image, "ports": [{"containerPort": 80}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    meta = {"name": name, "labels": dict(labels)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec | extra}


@frozen
class Reply:
    """An answer: status, decoded body, headers."""

    status: int
    body: Any
    headers: Any


@frozen
class Client:
    """Talks to the application as a client would: bodies are JSON unless they are bytes."""

    backend: MemoryBackend
    app: Any

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if body is not None and not isinstance(body, bytes):
            sent = {"Content-Type": "application/json"} | sent
        response = await self.app.test_client().open(path, method=method, data=data, headers=sent)
        text = await response.get_data()
        is_json = response.content_type.startswith("application/json")
        return Reply(response.status_code, json.loads(text) if is_json else text, response.headers)

    async def created(self, **options: Any) -> dict[str, Any]:
        """Create a deployment that must be accepted."""
        reply = await self("POST", DEPLOYMENTS, deployment(**options))
        assert reply.status == 201, reply.body
        return reply.body
