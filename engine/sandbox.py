"""What a worker process gives up before it touches a model: network, other programs, files it does not need.

Knows nothing of models. Linux only; a kernel that lacks one of the means leaves the others in force."""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
_CLONE_NEWNET: Final = 0x40000000
_SYSTEM: Final = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system"),
    *("/proc/self", "/proc/loadavg", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),  # not other processes
)

# linux/landlock.h; the system calls have the same numbers everywhere
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # by ABI version: how many rights there are

# Network, programs, other processes, kernel doors: none has a use in a worker.
_DENIED: Final = {
    "x86_64": (
        0xC000003E,  # linux/audit.h, AUDIT_ARCH_X86_64
        "socket=41 connect=42 accept=43 bind=49 listen=50 socketpair=53 fork=57 vfork=58 execve=59 kill=62 ptrace=101 "
        "pivot_root=155 chroot=161 mount=165 add_key=248 request_key=249 keyctl=250 unshare=272 accept4=288 "
        "perf_event_open=298 open_by_handle_at=304 setns=308 process_vm_readv=310 process_vm_writev=311 bpf=321 "
        "execveat=322 userfaultfd=323 pidfd_send_signal=424 io_uring_setup=425 pidfd_getfd=438",
    ),
    "aarch64": (
        0xC00000B7,
        "mount=40 pivot_root=41 chroot=51 unshare=97 ptrace=117 kill=129 socket=198 socketpair=199 bind=200 listen=201 "
        "accept=202 connect=203 add_key=217 request_key=218 keyctl=219 execve=221 perf_event_open=241 accept4=242 "
        "open_by_handle_at=265 setns=268 process_vm_readv=270 process_vm_writev=271 bpf=280 execveat=281 "
        "userfaultfd=282 pidfd_send_signal=424 io_uring_setup=425 pidfd_getfd=438",
    ),
}


def give_up(readable: Sequence[Path]) -> list[str]:
    """Keep only what computing needs: reading Python, system libraries and `readable`, and the open pipes.

    Call it before the first thread starts. Returns what was given up, of "network", "programs" and "files".
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent ended before the worker began")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given_up = []
    if any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET)):
        given_up.append("network")
    if _leave_files(libc, readable):
        given_up.append("files")
    if _filter_calls(libc):
        given_up.append("programs")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no other process of this user reads the worker's memory
    return given_up


def _leave_files(libc: ctypes.CDLL, readable: Sequence[Path]) -> bool:
    """Landlock: nothing is written or made, and only `readable` and what Python needs is read."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("<Q", handled)
    if version >= 4:
        attributes += struct.pack("<Q", 0b11)  # TCP bind and connect
    if version >= 6:
        attributes += struct.pack("<Q", 0b11)  # abstract Unix sockets and signals of processes outside
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in {*readable, *map(Path, (*_SYSTEM, *_python_folders()))}:
            _allow(libc, ruleset, path, _READ_FILE | _READ_DIR)
        _allow(libc, ruleset, Path(os.devnull), _READ_FILE | _WRITE_FILE)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _python_folders() -> set[str]:
    return {sys.prefix, sys.base_prefix, *(entry for entry in sys.path if entry)}


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    try:
        if not path.is_dir():
            rights &= ~_READ_DIR
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("<Qi", rights, handle), 0)
    finally:
        os.close(handle)


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Seccomp: system calls a worker never makes fail with EPERM, whatever asks for them."""
    if platform.machine() not in _DENIED:
        return False
    architecture, listed = _DENIED[platform.machine()]
    numbers = [int(entry.partition("=")[2]) for entry in listed.split()]
    load, equal, greater, answer = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
    allow, deny = 0x7FFF0000, 0x00050001  # linux/seccomp.h: RET_ALLOW, RET_ERRNO with EPERM
    program = [(load, 0, 0, 4), (equal, 0, len(numbers) + 3, architecture), (load, 0, 0, 0)]
    program.append((greater, len(numbers) + 1, 0, 0x40000000))  # the x32 calls of x86_64
    program += [(equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [(answer, 0, 0, allow), (answer, 0, 0, deny)]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    descriptor = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0) == 0)
