"""What can go wrong with an image: each error says what it is about, what happened and what to do."""

_SHOWN_LENGTH = 160  # enough for any honest path; a hostile one does not get to fill the terminal


def shown(name: bytes | str) -> str:
    """A name out of an archive made fit to print: quoted, escapes instead of control characters, bounded."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    quoted = ascii(text) if not text.isprintable() else f"'{text}'"
    return quoted if len(quoted) <= _SHOWN_LENGTH else f"{quoted[:_SHOWN_LENGTH]}…"


class ImageError(Exception):
    """The root of this package's errors.

    ``subject`` is what it was about, ``problem`` what happened, ``remedy`` what to do (may be empty).
    """

    def __init__(self, subject: str, problem: str, remedy: str = "") -> None:
        super().__init__(subject, problem, remedy)
        self.subject = subject
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        said = f"{self.subject} {self.problem}"
        return f"{said}: {self.remedy}" if self.remedy else said


class ImageNotFound(ImageError):
    """No image of that name is in the store."""

    def __init__(self, ref: str) -> None:
        super().__init__(
            f"image {ref}",
            "is not on this machine",
            f"import it with `machineplane image import FILE --ref {ref}`",
        )
        self.ref = ref

    def __reduce__(self) -> tuple[type["ImageNotFound"], tuple[str]]:
        return (ImageNotFound, (self.ref,))


class BadReference(ImageError, ValueError):
    """A text that is not an image reference."""


class UnnamedImage(ImageError):
    """The archive gives its image no name (or a name was given for several images)."""


class NotAnImage(ImageError):
    """The file is none of the forms that are understood, or its documents are malformed."""


class UnsupportedImage(ImageError):
    """A well-formed image that cannot be used here: architecture, media type, compression."""


class DamagedArchive(ImageError):
    """The bytes are not what their format demands: bad checksum, bad header, broken compression."""


class TruncatedArchive(DamagedArchive):
    """The archive ends before its end."""


class DigestMismatch(ImageError):
    """Content that does not have the SHA-256 by which it is named."""


class SizeMismatch(ImageError):
    """Content that does not have the size by which it is described."""


class QuotaExceeded(ImageError):
    """An image larger than :class:`~machineplane.runtime.images.model.StoreLimits` allows."""


class UnsafeMember(ImageError):
    """An archive member that is refused; ``rule`` is a short, stable slug such as ``path.parent``."""

    def __init__(self, subject: str, problem: str, remedy: str = "", *, rule: str) -> None:
        super().__init__(subject, problem, remedy)
        self.rule = rule


class StoreDamaged(ImageError):
    """The store on disk lacks something that its own index names."""


class StoreUnwritable(ImageError):
    """The operating system refused a write: no root, no space, no support for an attribute."""


class BadSettings(ImageError):
    """The file given by ``--registry-config``, or a pull secret, cannot be used; names file and key."""


class PullFailed(ImageError):
    """An image could not be had from where it was looked for."""


class Unreachable(PullFailed):
    """No answer, or one that says "later": it may be well again in a while."""


class RegistryUnreachable(Unreachable):
    """A registry, after all tries."""


class MachineUnreachable(Unreachable):
    """Another machine of the fabric."""


class RegistryDenied(PullFailed):
    """The registry wants other credentials."""


class NotInRegistry(PullFailed):
    """The registry, or the machine asked, does not have it."""


class BadAnswer(PullFailed):
    """What came from a registry or a machine breaks the protocol, or is not what it was asked for."""


class NeverPull(ImageError):
    """The image is not here, and the pod says that it must not be pulled."""
