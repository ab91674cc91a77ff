"""Image references as Docker writes and reads them.

``busybox`` means ``docker.io/library/busybox:latest``; the first component is a registry only if it has a
dot or a colon or is ``localhost``. The grammar is that of the reference package of the OCI distribution
project.
"""

import re

from attrs import frozen

from machineplane.runtime.images.errors import BadReference, shown

_DEFAULT_DOMAIN = "docker.io"
_DEFAULT_TAG = "latest"
_NAME_LIMIT = 255  # domain and path together

_DOMAIN = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@frozen
class Reference:
    """A complete image name: where, what, and which one (by ``tag``, by ``digest``, or both)."""

    domain: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest as this store takes it: ``sha256:`` and 64 small hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Read a reference and fill in what Docker fills in. Raises :class:`BadReference`."""
    rest, digest = _split_digest(text)
    rest, tag = _split_tag(text, rest)
    domain, path = _split_domain(rest)
    _check_name(text, domain, path)
    if tag is None and digest is None:
        tag = _DEFAULT_TAG
    return Reference(domain, path, tag, digest)


def normalise(text: str) -> str:
    """``busybox`` → ``docker.io/library/busybox:latest``. Raises :class:`BadReference`."""
    return str(parse_reference(text))


def _bad(text: str, problem: str) -> BadReference:
    return BadReference(
        f"image reference {shown(text)}", problem, "write it as [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]"
    )


def _split_digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.partition("@")
    if not at:
        return rest, None
    if not is_digest(digest):
        raise _bad(text, "has a digest that is not sha256: and 64 small hexadecimal digits")
    return rest, digest


def _split_tag(text: str, rest: str) -> tuple[str, str | None]:
    """The tag is what follows a colon in the last component; a colon before that belongs to a port."""
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, None
    if not _TAG.fullmatch(tag):
        raise _bad(text, f"has a bad tag {shown(tag)}")
    return head, tag


def _split_domain(rest: str) -> tuple[str, str]:
    first, slash, path = rest.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        first, path = _DEFAULT_DOMAIN, rest
    if first == "index.docker.io":
        first = _DEFAULT_DOMAIN
    if first == _DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return first, path


def _check_name(text: str, domain: str, path: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise _bad(text, f"has a bad host {shown(domain)}")
    if len(domain) + 1 + len(path) > _NAME_LIMIT:
        raise _bad(text, f"is longer than {_NAME_LIMIT} characters")
    for component in path.split("/"):
        if not component or not _COMPONENT.fullmatch(component):
            problem = "has upper-case letters" if component != component.lower() else "has a bad name"
            raise _bad(text, f"{problem} in {shown(component)}" if component else "has an empty name")
