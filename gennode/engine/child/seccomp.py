"""A filter of system calls: what a process that only computes has no use for fails with EPERM.

Sources: the kernel's Documentation/userspace-api/seccomp_filter.rst; numbers from its
arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl. What is listed here is what
landlock does not see: connections of other kinds than TCP, other processes, other programs, the
kernel's large or young interfaces, and changes to what files are allowed.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from gennode.engine.child.system import RefusedError, allow_no_new_privileges, call, machine

# Names, with the numbers on x86-64 and on 64-bit ARM; -1 where there is no such call.
REFUSED: dict[str, tuple[int, int]] = {
    # connections
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kill": (62, 129), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    # the kernel's interfaces
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "syslog": (103, 116), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "fanotify_init": (300, 262), "open_by_handle_at": (304, 265),
    # what is mounted, and seen of the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # what files allow
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utimensat": (280, 88), "utimes": (235, -1), "utime": (132, -1), "futimesat": (261, -1),
}  # fmt: skip

_CLONE, _CLONE3 = (56, 220), 435
_CLONE_THREAD = 0x10000  # a thread of ours; without it, another process
_SECCOMP = (317, 277)
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ARCHITECTURES = (0xC000003E, 0xC00000B7)
_X32 = 0x40000000  # another set of numbers on x86-64, which nothing here uses

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # the latter with an error number in its low bits
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""Code, how far to jump if true and if false, and a value: one of the classic BPF."""


def program(index: int) -> list[Instruction]:
    """The filter for a processor family, by its place in the pairs above."""
    refuse = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    filters: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[index]),
        refuse,
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if index == 0:
        filters += [(_AT_LEAST, 0, 1, _X32), refuse]
    # Threads are made by clone. clone3 hides its flags behind a pointer; told that there is no
    # such call, the C library uses the older one.
    filters += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    filters += [
        (_EQUAL, 0, 4, _CLONE[index]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_HAS_BITS, 0, 1, _CLONE_THREAD),
        allow,
        refuse,
    ]
    for numbers in REFUSED.values():
        if numbers[index] >= 0:
            filters += [(_EQUAL, 0, 1, numbers[index]), refuse]
    return [*filters, allow]


def filter_calls() -> bool:
    """Refuse those calls in all threads of this process, for good. Whether the kernel can.

    Raises RefusedError if it can and refuses all the same.
    """
    family = machine()
    if family is None:
        return False
    index = ("x86_64", "aarch64").index(family)
    instructions = program(index)
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    allow_no_new_privileges()
    try:
        call(_SECCOMP[index], _SET_MODE_FILTER, _ALL_THREADS,
             ctypes.create_string_buffer(header, len(header)))  # fmt: skip
    except RefusedError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            return False  # a kernel without filters
        raise
    return True
