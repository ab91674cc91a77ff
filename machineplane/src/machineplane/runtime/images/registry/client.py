"""All registries, as the settings have them: HTTP clients that are kept, and sources made for each pull."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from machineplane.runtime.images.names import Reference
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.endpoint import Endpoint, endpoints_of, open_client
from machineplane.runtime.images.registry.repository import Repository
from machineplane.runtime.images.registry.session import Session
from machineplane.runtime.images.registry.settings import HostSettings, RegistrySettings
from machineplane.runtime.images.registry.source import EndpointSource, Health
from machineplane.runtime.images.waits import Waits


class Registries:
    """Use :func:`open_registries`. One HTTP client for all hosts of the same settings."""

    def __init__(self, settings: RegistrySettings, waits: Waits) -> None:
        self.settings = settings
        self._waits = waits
        self._health = Health()
        self._clients: dict[HostSettings, httpx.AsyncClient] = {}

    def sources(self, reference: Reference, keyring: Keyring) -> list[EndpointSource]:
        """Where to ask for an image, in order. The given keys come before the machine's own, no key last.

        Raises ``BadSettings`` for a certificate file that cannot be used.
        """
        keys = keyring + self.settings.keyring
        endpoints = endpoints_of(reference.domain, self.settings)
        return [self._source(endpoint, reference.path, keys) for endpoint in endpoints]

    def _source(self, endpoint: Endpoint, path: str, keys: Keyring) -> EndpointSource:
        client = self._client(endpoint.settings)
        repositories = [
            Repository(Session(client, endpoint, path, credential, self._waits))
            for credential in (*keys.find(endpoint.host, path), None)
        ]
        return EndpointSource(endpoint, repositories, self._health)

    def _client(self, settings: HostSettings) -> httpx.AsyncClient:
        if settings not in self._clients:
            self._clients[settings] = open_client(settings)
        return self._clients[settings]

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()


@asynccontextmanager
async def open_registries(settings: RegistrySettings, waits: Waits) -> AsyncIterator[Registries]:
    """Registries whose connections are closed at the end."""
    registries = Registries(settings, waits)
    try:
        yield registries
    finally:
        await registries.aclose()
