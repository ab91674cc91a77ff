"""The calls of libkrun that the runtime makes, through ctypes.

Each returns 0 or an id, or a negated errno. ``krun_start_enter`` takes the calling process over and ends it with the
guest's exit code: one process a machine, which has nothing else to do. Which calls there are depends on the library's
version and on how it was built, and it tells neither: what is needed is looked up by name (`Library.has`), and a plan that
a library cannot carry out is refused before anything starts.

Signatures are those of ``libkrun.h``, 1.10 to 1.19; `scripts/check_krun_header.py` compares them with a header.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

_ID = ctypes.c_uint32
_Text = ctypes.c_char_p
_Texts = ctypes.POINTER(ctypes.c_char_p)
_Mac = ctypes.POINTER(ctypes.c_uint8)

SIGNATURES: Final[Mapping[str, tuple[Any, ...]]] = {
    "krun_create_ctx": (),
    "krun_free_ctx": (_ID,),
    "krun_set_vm_config": (_ID, ctypes.c_uint8, ctypes.c_uint32),
    "krun_set_root": (_ID, _Text),
    "krun_add_virtiofs": (_ID, _Text, _Text),
    "krun_add_virtiofs3": (_ID, _Text, _Text, ctypes.c_uint64, ctypes.c_bool),
    "krun_add_net_tap": (_ID, _Text, _Mac, ctypes.c_uint32, ctypes.c_uint32),
    "krun_set_passt_fd": (_ID, ctypes.c_int),
    "krun_set_workdir": (_ID, _Text),
    "krun_set_exec": (_ID, _Text, _Texts, _Texts),
    "krun_set_console_output": (_ID, _Text),
    "krun_add_virtio_console_default": (_ID, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    "krun_disable_implicit_vsock": (_ID,),
    "krun_add_vsock": (_ID, ctypes.c_uint32),
    "krun_add_vsock_port2": (_ID, ctypes.c_uint32, _Text, ctypes.c_bool),
    "krun_start_enter": (_ID,),
}
"""Every call that is made, with its arguments' types; all return ``int32_t``."""

ROOT_TAG: Final = "/dev/root"
"""The tag of the guest's root, when it is added as a share (``KRUN_FS_ROOT_TAG``)."""

NEEDED: Final = (
    "krun_create_ctx",
    "krun_set_vm_config",
    "krun_set_exec",
    "krun_set_workdir",
    "krun_add_vsock_port2",
    "krun_start_enter",
)
"""Without these there is nothing to be done: libkrun 1.10 and later have them all."""

TSI_INET: Final = 1
"""The guest's sockets become this process's (``KRUN_TSI_HIJACK_INET``)."""

MAX_VCPUS: Final = 255  # the call takes a uint8_t
NAMES: Final = ("libkrun.so.1", "libkrun.so.2", "libkrun.so")
FIRMWARE_NAMES: Final = ("libkrunfw.so.5", "libkrunfw.so.4")
"""The guest's kernel, by the versions of its interface that libkrun 1.10 to 1.19 open."""


class KrunError(Exception):
    """libkrun cannot be used, or refused a call. ``status`` is its errno, 0 if there is none."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(f"libkrun: {what}" + (f": {os.strerror(status)}" if status else ""))
        self.status = status


@frozen
class Share:
    """A folder of the host that the guest mounts by its tag (virtio-fs)."""

    tag: str
    path: str
    read_only: bool = False


@frozen
class VsockPort:
    """A port of the guest that is a Unix socket here. ``listen``: it is we who connect."""

    port: int
    path: str
    listen: bool


@frozen(kw_only=True)
class VmPlan:
    """One machine. ``arguments`` are those after the program's own name; a ``tap`` is a device's name and its guest's MAC.

    ``memory_mib`` is what the guest sees; ``console`` is the file into which its kernel and init write. Program, arguments
    and variables go by the kernel's command line, which takes few, short, and no quoted ones. ``tsi``: the guest's sockets
    are ours.
    """

    vcpus: int = field()
    memory_mib: int
    root: str
    program: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    workdir: str = "/"
    root_read_only: bool = False
    shares: tuple[Share, ...] = ()
    ports: tuple[VsockPort, ...] = ()
    tap: tuple[str, bytes] | None = None
    passt_fd: int | None = None
    tsi: bool = False
    console: str = ""

    @vcpus.validator
    def _check_vcpus(self, attribute: object, value: int) -> None:
        if not 1 <= value <= MAX_VCPUS:
            raise KrunError(f"a machine has 1 to {MAX_VCPUS} vCPUs, not {value}")


class Library:
    """A loaded libkrun.

    Raises:
        KrunError: it cannot be loaded, or lacks one of `NEEDED`; says which.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        _load_firmware(Path(path).parent)
        try:
            # Lazily bound: builds of it leave graphics symbols undefined that nothing here calls.
            self._lib = ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
        except OSError as error:
            raise KrunError(f"{path} cannot be loaded: {error}") from error
        missing = [name for name in NEEDED if not self.has(name)]
        if missing:
            raise KrunError(f"{path} lacks {', '.join(missing)}; 1.10 or later is needed")
        for name, arguments in SIGNATURES.items():
            if self.has(name):
                call = getattr(self._lib, name)
                call.argtypes, call.restype = arguments, ctypes.c_int32

    def has(self, name: str) -> bool:
        """Whether the library offers a call."""
        return hasattr(self._lib, name)

    def call(self, name: str, *arguments: Any) -> int:
        """Make a call; its result.

        Raises:
            KrunError: the library lacks it, or it failed.
        """
        if not self.has(name):
            raise KrunError(f"{self.path} has no {name}; a later version is needed")
        result = int(getattr(self._lib, name)(*arguments))
        if result < 0:
            raise KrunError(name, -result)
        return result

    def configure(self, plan: VmPlan) -> int:
        """A context in which the machine is set up as planned; only `enter` is left to do.

        Raises:
            KrunError: a call failed, or the library cannot do what the plan asks for.
        """
        context = self.call("krun_create_ctx")
        try:
            self._configure(context, plan)
        except KrunError:
            if self.has("krun_free_ctx"):
                self.call("krun_free_ctx", context)
            raise
        return context

    def enter(self, context: int) -> None:
        """Start the machine. On success this process is the machine, and ends with the guest's exit code.

        Raises:
            KrunError: it did not start.
        """
        self.call("krun_start_enter", context)

    # -- the parts of a plan

    def _configure(self, context: int, plan: VmPlan) -> None:
        self.call("krun_set_vm_config", context, plan.vcpus, plan.memory_mib)
        self._add_root(context, plan)
        for share in plan.shares:
            self._add_share(context, share)
        self._add_network(context, plan)
        self._add_vsock(context, plan)
        if plan.console:
            self._add_console(context, plan.console)
        self.call("krun_set_workdir", context, plan.workdir.encode())
        environment = [f"{name}={value}" for name, value in plan.environment.items()]
        program, arguments = plan.program.encode(), _texts(plan.arguments)
        self.call("krun_set_exec", context, program, arguments, _texts(environment))

    def _add_root(self, context: int, plan: VmPlan) -> None:
        """By the older call where it serves: some builds have only the one, some only the other."""
        if not plan.root_read_only and self.has("krun_set_root"):
            self.call("krun_set_root", context, os.fsencode(plan.root))
            return
        self._add_share(context, Share(ROOT_TAG, plan.root, plan.root_read_only))

    def _add_share(self, context: int, share: Share) -> None:
        tag, path = share.tag.encode(), os.fsencode(share.path)
        if self.has("krun_add_virtiofs3"):
            self.call("krun_add_virtiofs3", context, tag, path, 0, share.read_only)
        elif share.read_only:
            # Without it the guest could write to what it is only to read: no less isolation than was asked for.
            raise KrunError(f"{self.path} has no krun_add_virtiofs3, so {share.path} cannot be read-only")
        else:
            self.call("krun_add_virtiofs", context, tag, path)

    def _add_network(self, context: int, plan: VmPlan) -> None:
        """One device, which also ends that the guest's sockets become the host's (TSI)."""
        if plan.tap is not None:
            name, mac = plan.tap
            hardware = (ctypes.c_uint8 * 6)(*mac)
            self.call("krun_add_net_tap", context, name.encode(), hardware, 0, 0)
        elif plan.passt_fd is not None:
            self.call("krun_set_passt_fd", context, plan.passt_fd)

    def _add_vsock(self, context: int, plan: VmPlan) -> None:
        """A socket device of our own where the library knows such, with or without TSI: else its implicit one serves."""
        if self.has("krun_add_vsock"):
            if self.has("krun_disable_implicit_vsock"):
                self.call("krun_disable_implicit_vsock", context)
            self.call("krun_add_vsock", context, TSI_INET if plan.tsi else 0)
        for port in plan.ports:
            self.call("krun_add_vsock_port2", context, port.port, os.fsencode(port.path), port.listen)

    def _add_console(self, context: int, path: str) -> None:
        if self.has("krun_set_console_output"):
            self.call("krun_set_console_output", context, os.fsencode(path))
            return
        # The library keeps the descriptors for as long as the process lives.
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.call("krun_add_virtio_console_default", context, nothing, out, out)


def _texts(values: Sequence[str]) -> Any:
    """A NULL-terminated array of C strings."""
    return (ctypes.c_char_p * (len(values) + 1))(*[value.encode() for value in values], None)


def _load_firmware(folder: Path) -> None:
    """libkrun opens its kernel by name alone: one that lies beside it has to be there before."""
    for name in FIRMWARE_NAMES:
        if (folder / name).is_file():
            ctypes.CDLL(str(folder / name), mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
            return
