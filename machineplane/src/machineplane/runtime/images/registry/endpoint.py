"""One place where a registry's content is to be had: the registry itself, or a mirror of it."""

import ssl

import httpx
from attrs import frozen

from machineplane.runtime.images.errors import BadSettings
from machineplane.runtime.images.registry.settings import HostSettings, Mirror, RegistrySettings

_HUB, _HUB_API = (
    "docker.io",
    "registry-1.docker.io",
)  # the one registry whose API has another name than its images
CONNECT_TIMEOUT_S = 5.0  # a guess: two lost SYNs (1 s + 2 s) and some room
READ_TIMEOUT_S = (
    30.0  # silence within an answer; a guess between Docker's none and the 10 s of a dead QUIC peer
)
_CONNECTIONS = 16  # of one endpoint; a guess above any sensible number of layers at once


@frozen(kw_only=True)
class Endpoint:
    """``host`` is what credentials are looked up by and what errors name."""

    host: str
    address: str  # host and port that are connected to
    plain_http: bool
    prefix: str
    settings: HostSettings

    @property
    def subject(self) -> str:
        return f"registry {self.host}"

    def url(self, path: str, rest: str) -> httpx.URL:
        """Of a repository's resource: ``https://host/v2/<prefix>/<path>/<rest>``."""
        scheme = "http" if self.plain_http else "https"
        name = f"{self.prefix}/{path}" if self.prefix else path
        return httpx.URL(f"{scheme}://{self.address}/v2/{name}/{rest}")

    def scope(self, path: str) -> str:
        """What a token is asked for (distribution project, "Token Scope Documentation")."""
        return f"repository:{self.prefix}/{path}:pull" if self.prefix else f"repository:{path}:pull"


def endpoints_of(domain: str, settings: RegistrySettings) -> list[Endpoint]:
    """Where images of ``domain`` are asked for, in order: its mirrors, then itself. None where it is disabled."""
    host = settings.host(domain)
    if not host.enabled:
        return []
    return [*(_mirror(mirror, settings) for mirror in host.mirrors), _origin(domain, host)]


def _origin(domain: str, settings: HostSettings) -> Endpoint:
    address = _HUB_API if domain == _HUB else domain
    return Endpoint(
        host=domain, address=address, plain_http=settings.plain_http, prefix="", settings=settings
    )


def _mirror(mirror: Mirror, settings: RegistrySettings) -> Endpoint:
    """A mirror that is listed as a registry of its own takes its authority from there."""
    return Endpoint(
        host=mirror.host,
        address=mirror.host,
        plain_http=mirror.plain_http,
        prefix=mirror.prefix,
        settings=settings.hosts.get(mirror.host) or HostSettings(),
    )


def open_client(settings: HostSettings) -> httpx.AsyncClient:
    """A client that follows nothing, decodes nothing and trusts whom the settings say. Raises ``BadSettings``."""
    return httpx.AsyncClient(
        verify=_trust(settings),
        follow_redirects=False,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=_CONNECTIONS),
        headers={"User-Agent": "magik-machineplane", "Accept-Encoding": "identity"},
    )


def _trust(settings: HostSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if settings.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.ca is not None:
        try:
            context.load_verify_locations(cafile=settings.ca)
        except (OSError, ssl.SSLError) as error:
            raise BadSettings(
                str(settings.ca), f"is no file of certificates in PEM form ({error})"
            ) from error
    return context
