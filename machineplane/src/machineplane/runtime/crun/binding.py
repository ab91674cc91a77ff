"""The calls of libcrun that the runtime makes, through ctypes.

``create`` changes its caller (resource limits, signal mask, session keyring, open descriptors) and clones by a raw system
call, so each call here belongs into a forked child of a single-threaded process that ends after it.

The layout of ``libcrun_context_s`` is that of libcrun's ``container.h``; it has no size or version field, so the flags
behind ``detach`` are placed by the library's version, and the structure is over-allocated and zeroed.
"""

import ctypes
import os

CONTEXT_SIZE = 512
"""Bytes given to a context: 120 in the versions known, the rest zero for what a later version may add."""

_CONTEXT_STRINGS = {"state_root": 0, "id": 8, "bundle": 16, "console_socket": 24, "pid_file": 32}
_FIFO_FD = 80
_SYSTEMD_CGROUP = 84
_DETACH = 85
_FORCE_NO_CGROUP_UNTIL_1_12 = 88
_FORCE_NO_CGROUP_FROM_1_13 = 87
_OLDEST = (1, 5)
_VERBOSITY_ERROR = 0


class LibcrunError(Exception):
    """libcrun refused a call. ``status`` is its errno (0 if it has none), the text is its own message."""

    def __init__(self, call: str, status: int, message: str) -> None:
        reason = f": {os.strerror(status)}" if status > 0 and os.strerror(status) not in message else ""
        super().__init__(f"libcrun {call}: {message or 'failed without a message'}{reason}")
        self.status = status
        self.message = message


class _Error(ctypes.Structure):
    _fields_ = (("status", ctypes.c_int), ("message", ctypes.c_char_p))


_ErrorPointer = ctypes.POINTER(_Error)
_String = ctypes.c_char_p
_Handle = ctypes.c_void_p


def force_no_cgroup_offset(version: tuple[int, ...]) -> int:
    """Where the flag ``force_no_cgroup`` stands in a context of this version of libcrun."""
    if version < _OLDEST:
        raise LibcrunError(
            "version", 0, f"version {'.'.join(map(str, version))} is too old; 1.5 or later is needed"
        )
    return _FORCE_NO_CGROUP_FROM_1_13 if version >= (1, 13) else _FORCE_NO_CGROUP_UNTIL_1_12


class Context:
    """A zeroed ``libcrun_context_s`` for one container; keeps its strings alive."""

    def __init__(
        self,
        version: tuple[int, ...],
        *,
        state_root: str,
        container_id: str,
        bundle: str = "",
        pid_file: str = "",
        console_socket: str = "",
    ) -> None:
        self._buffer = ctypes.create_string_buffer(CONTEXT_SIZE)
        self._version = version
        values = {
            "state_root": state_root,
            "id": container_id,
            "bundle": bundle,
            "console_socket": console_socket,
            "pid_file": pid_file,
        }
        self._strings = {name: _String(os.fsencode(value)) for name, value in values.items() if value}
        for name, string in self._strings.items():
            pointer = ctypes.cast(string, _Handle).value or 0
            self._put(_CONTEXT_STRINGS[name], pointer.to_bytes(8, "little"))
        self._put(_FIFO_FD, (-1).to_bytes(4, "little", signed=True))
        self._put(_DETACH, b"\x01")

    def _put(self, offset: int, raw: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self._buffer) + offset, raw, len(raw))

    def without_cgroups(self) -> "Context":
        """Tell libcrun to make no control group at all."""
        self._put(force_no_cgroup_offset(self._version), b"\x01")
        return self

    def by_systemd(self) -> "Context":
        """Have systemd make its control group, whose path is then `slice:prefix:name`."""
        self._put(_SYSTEMD_CGROUP, b"\x01")
        return self

    @property
    def pointer(self) -> ctypes.Array[ctypes.c_char]:
        """What is passed to libcrun."""
        return self._buffer


class Library:
    """A loaded libcrun.

    Raises:
        OSError: the file is missing or cannot be loaded.
        LibcrunError: it is too old.
    """

    def __init__(self, path: str, version: tuple[int, ...]) -> None:
        force_no_cgroup_offset(version)
        self.version = version
        self._lib = ctypes.CDLL(path)
        self._lib.libcrun_container_load_from_memory.restype = _Handle
        self._lib.libcrun_container_load_from_memory.argtypes = (_String, ctypes.POINTER(_ErrorPointer))
        self._lib.libcrun_container_free.argtypes = (_Handle,)
        self._lib.libcrun_container_create.argtypes = (
            _Handle,
            _Handle,
            ctypes.c_uint,
            ctypes.POINTER(_ErrorPointer),
        )
        self._lib.libcrun_container_start.argtypes = (_Handle, _String, ctypes.POINTER(_ErrorPointer))
        self._lib.libcrun_container_delete.argtypes = (
            _Handle,
            _Handle,
            _String,
            ctypes.c_bool,
            ctypes.POINTER(_ErrorPointer),
        )
        self._lib.libcrun_container_exec_process_file.argtypes = (
            _Handle,
            _String,
            _String,
            ctypes.POINTER(_ErrorPointer),
        )
        self._lib.libcrun_error_release.argtypes = (ctypes.POINTER(_ErrorPointer),)
        self._lib.libcrun_set_verbosity(_VERBOSITY_ERROR)

    def _fail(self, call: str, error: "ctypes._Pointer[_Error]") -> LibcrunError:
        if not error:
            return LibcrunError(call, 0, "")
        status = int(error.contents.status)
        message = (error.contents.message or b"").decode(errors="replace")
        self._lib.libcrun_error_release(ctypes.byref(error))
        return LibcrunError(call, status, message)

    def create(self, context: Context, configuration: bytes) -> None:
        """Make the container of an OCI configuration (JSON); its first process then waits for :meth:`start`."""
        error = _ErrorPointer()
        container = self._lib.libcrun_container_load_from_memory(configuration, ctypes.byref(error))
        if not container:
            raise self._fail("load", error)
        if self._lib.libcrun_container_create(context.pointer, container, 0, ctypes.byref(error)) < 0:
            raise self._fail("create", error)

    def start(self, context: Context, container_id: str) -> None:
        """Let a created container's first process run its program."""
        error = _ErrorPointer()
        if self._lib.libcrun_container_start(context.pointer, container_id.encode(), ctypes.byref(error)) < 0:
            raise self._fail("start", error)

    def execute(self, context: Context, container_id: str, process_file: str) -> None:
        """Run one more process in a running container, as the file (JSON of OCI's ``process``) says.

        By its file and not by libcrun's structure of options, whose size differs between versions.
        """
        error = _ErrorPointer()
        result = self._lib.libcrun_container_exec_process_file(
            context.pointer, container_id.encode(), os.fsencode(process_file), ctypes.byref(error)
        )
        if result < 0:
            raise self._fail("exec", error)

    def delete(self, context: Context, container_id: str) -> None:
        """Remove a container's state and control groups, killing what still runs in it."""
        error = _ErrorPointer()
        result = self._lib.libcrun_container_delete(
            context.pointer, None, container_id.encode(), True, ctypes.byref(error)
        )
        if result < 0:
            raise self._fail("delete", error)
