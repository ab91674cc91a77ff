"""nftables through ``libnftables.so.1``: the same library and language as the ``nft`` program, without
starting it.

Rules apply to the network namespace of the *calling thread*: the library opens its netlink socket there on
each call. Loading is by ctypes at the first call, so that importing this module needs nothing.
"""

import ctypes
import threading
from functools import cache

LIBRARY = "libnftables.so.1"

# libnftables keeps its table of interface names in one static list for all contexts: one caller at a time.
_one_at_a_time = threading.Lock()


class NftError(Exception):
    """nftables did not do what was asked."""


class NftUnavailable(NftError):
    """The library is not on this machine."""


class NftRefused(NftError):
    """The kernel or the parser refused ``commands``; ``detail`` is the library's own message."""

    def __init__(self, commands: str, detail: str) -> None:
        first = commands.strip().splitlines()[0] if commands.strip() else "(nothing)"
        super().__init__(f"nftables refused {first!r}: {' '.join(detail.split()) or 'no reason given'}")
        self.commands = commands
        self.detail = detail


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NftUnavailable(
            f"{LIBRARY} cannot be loaded ({error}): install it, on Debian and Ubuntu with "
            "`apt-get install libnftables1`, on Fedora with `dnf install nftables`"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_free.restype = None
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    return library


def check() -> None:
    """Raise :class:`NftUnavailable` where the library is absent; touch nothing else."""
    _library()


def run(commands: str) -> str:
    """Do ``commands`` (nft syntax, one a line) as one transaction and return what they print.

    Either all of them take effect or none. Raises :class:`NftRefused` with the library's message, or
    :class:`NftUnavailable` where there is no library.
    """
    library = _library()
    with _one_at_a_time:
        context = library.nft_ctx_new(0)
        if not context:
            raise NftError("libnftables made no context: nftables needs CAP_NET_ADMIN (run as root)")
        try:
            return _run_in(library, context, commands)
        finally:
            library.nft_ctx_free(context)


def _run_in(library: ctypes.CDLL, context: int, commands: str) -> str:
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
        raise NftRefused(commands, _text(library.nft_ctx_get_error_buffer(context)))
    return _text(library.nft_ctx_get_output_buffer(context))


def _text(buffer: bytes | None) -> str:
    return (buffer or b"").decode(errors="replace")


def tables(family: str) -> frozenset[str]:
    """The names of the tables of ``family`` (``ip``, ``inet``, …) in this thread's network namespace."""
    lines = run(f"list tables {family}").splitlines()
    return frozenset(words[2] for words in map(str.split, lines) if len(words) == 3 and words[0] == "table")


def delete_table(family: str, table: str) -> None:
    """Delete ``table`` and all in it; nothing happens when there is none."""
    # `add` of a table that exists changes nothing, so the pair works either way, in one transaction.
    run(f"add table {family} {table}\ndelete table {family} {table}")
