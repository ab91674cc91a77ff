"""The pause program: a static ELF executable that does nothing but sleep, written byte by byte.

It is the process that holds a pod's namespaces open. File: one ELF64 header (64 bytes; System V ABI, "ELF
Header"), one program header (56 bytes; "Program Header") that maps the whole file readable and executable,
and the code right after.
"""

import struct
from collections.abc import Mapping

_BASE = 0x40_0000  # where static executables have always been mapped
_HEADER = 64
_PROGRAM_HEADER = 56
_PAGE = 0x1_0000  # 64 KiB: the largest page of the two architectures

_MACHINES = {"amd64": 62, "arm64": 183}  # EM_X86_64, EM_AARCH64 (<elf.h>)

_CODE_X86_64 = bytes.fromhex(
    "6a22"  # start: push 34         ; __NR_pause (arch/x86/entry/syscalls/syscall_64.tbl)
    "58"  #          pop  rax
    "0f05"  #        syscall
    "ebf9"  #        jmp  start      ; 7 bytes back from the next instruction
)

# arm64 has no pause(2); ppoll on no descriptors without a time limit is what C libraries make of it
_CODE_AARCH64 = struct.pack(
    "<7I",
    0xD2800000,  # start: mov x0, #0   ; no descriptors
    0xD2800001,  #        mov x1, #0   ; none of them
    0xD2800002,  #        mov x2, #0   ; no time limit
    0xD2800003,  #        mov x3, #0   ; signal mask as it is
    0xD2800928,  #        mov x8, #73  ; __NR_ppoll (include/uapi/asm-generic/unistd.h)
    0xD4000001,  #        svc #0
    0x17FFFFFA,  #        b   start    ; 6 instructions back
)


def static_elf(architecture: str, code: bytes) -> bytes:
    """A static executable of these instructions, for an OCI architecture of `PAUSE_ELF`."""
    size = _HEADER + _PROGRAM_HEADER + len(code)
    identification = b"\x7fELF" + bytes([2, 1, 1, 0])  # 64 bits, little endian, version 1, System V
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        identification,
        2,  # e_type: ET_EXEC
        _MACHINES[architecture],
        1,  # e_version
        _BASE + _HEADER + _PROGRAM_HEADER,  # e_entry: the first byte of the code
        _HEADER,  # e_phoff
        0,  # e_shoff: no sections
        0,  # e_flags
        _HEADER,
        _PROGRAM_HEADER,
        1,  # e_phnum
        0,  # e_shentsize
        0,  # e_shnum
        0,  # e_shstrndx
    )
    program = struct.pack(
        "<IIQQQQQQ",
        1,  # p_type: PT_LOAD
        5,  # p_flags: readable, executable
        0,  # p_offset
        _BASE,  # p_vaddr
        _BASE,  # p_paddr
        size,  # p_filesz
        size,  # p_memsz
        _PAGE,  # p_align
    )
    return header + program + code


PAUSE_ELF: Mapping[str, bytes] = {
    "amd64": static_elf("amd64", _CODE_X86_64),
    "arm64": static_elf("arm64", _CODE_AARCH64),
}
"""The program by OCI architecture."""
