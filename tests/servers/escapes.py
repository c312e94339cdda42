"""Every way out of a container that a compromised server might try, but for the network. Run inside of one.

Standard library only. `run` answers for each way what stopped it, or "done"."""

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET = 0x10000000, 0x00020000, 0x40000000
MS_REMOUNT, MS_BIND = 32, 4096
PTRACE_ATTACH = 16
NUMBERS = {
    "x86_64": {"bpf": 321, "perf_event_open": 298, "keyctl": 250, "open_by_handle_at": 304, "userfaultfd": 323,
               "kexec_load": 246, "init_module": 175, "finit_module": 313, "iopl": 172, "setns": 308, "pivot_root": 155,
               "swapon": 167, "acct": 163, "syslog": 103, "settimeofday": 164, "add_key": 248, "quotactl": 179},
    "aarch64": {"bpf": 280, "perf_event_open": 241, "keyctl": 219, "open_by_handle_at": 265, "userfaultfd": 282,
                "kexec_load": 104, "init_module": 105, "finit_module": 273, "setns": 268, "pivot_root": 41,
                "swapon": 224, "acct": 89, "syslog": 116, "settimeofday": 170, "add_key": 217, "quotactl": 60},
}  # fmt: skip


def checked(code: int) -> str:
    if code < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def call(name: str, *arguments: object) -> Callable[[], str]:
    number = NUMBERS[os.uname().machine].get(name)
    if number is None:
        return lambda: "refused: no such call on this machine"
    return lambda: checked(libc.syscall(number, *arguments))


def write(path: str, text: str = "1") -> Callable[[], str]:
    def attempt() -> str:
        with open(path, "w") as file:
            file.write(text)
        return "done"

    return attempt


def read(path: str) -> Callable[[], str]:
    def attempt() -> str:
        with open(path, "rb") as file:
            return "done" if file.read(64) else "refused: it is empty"

    return attempt


def mount(source: bytes, target: bytes, kind: bytes, flags: int = 0) -> Callable[[], str]:
    return lambda: checked(libc.mount(source, target, kind, flags, None))


def program_in_tmp(mode: int) -> str:
    path = Path("/tmp/program")  # the container's own
    path.write_text("#!/bin/sh\necho done\n")
    path.chmod(mode)
    return subprocess.run([str(path)], capture_output=True, text=True, check=True).stdout.strip()


def device() -> str:
    os.mknod("/tmp/device", 0o600 | 0o060000, os.makedev(8, 0))
    return "done"


def host_process() -> str:
    """Any process that is not of this container."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if len(found) > 20:
        return "done"
    raise PermissionError(f"only {len(found)} processes are seen")


def as_root() -> str:
    os.setuid(0)
    return "done"


def set_group() -> str:
    os.setgroups([0])
    return "done"


def root_changed() -> str:
    os.chroot("/tmp")
    return "done"


def more_capabilities() -> str:
    """Whatever is there would be kept across exec."""
    status = Path("/proc/self/status").read_text()
    kept = [line for line in status.splitlines() if line.startswith("Cap") and line.split()[1].strip("0")]
    if kept:
        return "done"
    raise PermissionError("no capability in any set")


def setuid_program() -> str:
    """A program with the setuid bit: with no_new_privs it gains nothing."""
    for program in ("/bin/su", "/usr/bin/passwd", "/bin/mount"):
        if os.path.exists(program) and os.stat(program).st_mode & 0o4000:
            seen = subprocess.run([program, "--help"], capture_output=True, check=False)
            status = Path("/proc/self/status").read_text()
            if "NoNewPrivs:\t1" not in status:
                return f"done {seen.returncode}"
    raise PermissionError("no_new_privs")


def unconfined() -> str:
    status = Path("/proc/self/status").read_text()
    if "Seccomp:\t2" not in status:
        return "done"
    raise PermissionError("seccomp filters")


def ways() -> dict[str, Callable[[], str]]:
    return {
        "become root": as_root,
        "a group of root": set_group,
        "capabilities": more_capabilities,
        "a setuid program": setuid_program,
        "no seccomp": unconfined,
        "another root": root_changed,
        "a program in /tmp": lambda: program_in_tmp(0o755),
        "a setuid program in /tmp": lambda: program_in_tmp(0o4755),
        "a program in /dev/shm": write("/dev/shm/../../usr/bin/x"),
        "a device": device,
        "write the root": write("/etc/passwd"),
        "write a new file in the root": write("/new"),
        "write the launcher": write("/run/lockgate/launch"),
        "remount the root": mount(b"none", b"/", b"", MS_REMOUNT),
        "bind the root": mount(b"/", b"/tmp", b"", MS_BIND),
        "mount a tmpfs": mount(b"none", b"/tmp", b"tmpfs"),
        "mount proc": mount(b"proc", b"/tmp", b"proc"),
        "mount a cgroup": mount(b"none", b"/tmp", b"cgroup"),
        "mount an overlay": mount(b"none", b"/tmp", b"overlay"),
        "unmount proc": lambda: checked(libc.umount(b"/proc")),
        "unmount what covers /proc/kcore": lambda: checked(libc.umount2(b"/proc/kcore", 2)),
        "a user namespace": lambda: checked(libc.unshare(CLONE_NEWUSER)),
        "a mount namespace": lambda: checked(libc.unshare(CLONE_NEWNS)),
        "a network namespace": lambda: checked(libc.unshare(CLONE_NEWNET)),
        "join the namespace of process 1": call("setns", 3, 0),
        "another root by pivot": call("pivot_root", b"/tmp", b"/tmp"),
        "processes of the host": host_process,
        "kernel memory": read("/proc/kcore"),
        "physical memory": read("/dev/mem"),
        "the kernel's log device": read("/dev/kmsg"),
        "the kernel's log": call("syslog", 3, b" " * 64, 64),
        "kernel keys": read("/proc/keys"),
        "timers of the host": read("/proc/timer_list"),
        "firmware": lambda: "done" if os.listdir("/sys/firmware") else checked(-1),
        "a disk": read("/dev/sda"),
        "the core pattern": write("/proc/sys/kernel/core_pattern", "|/tmp/x"),
        "the program for modules": write("/proc/sys/kernel/modprobe", "/tmp/x"),
        "sysrq": write("/proc/sysrq-trigger", "h"),
        "the kernel's settings": write("/proc/sys/vm/overcommit_memory"),
        "a uevent helper": write("/sys/kernel/uevent_helper", "/tmp/x"),
        "the release agent": write("/sys/fs/cgroup/release_agent", "/tmp/x"),
        "the limit of its memory": write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1"),
        "the limit of its memory, version 2": write("/sys/fs/cgroup/memory.max", "max"),
        "a host name": lambda: checked(libc.sethostname(b"x", 1)),
        "the clock": call("settimeofday", b"\0" * 16, 0),
        "a kernel module": call("init_module", b"", 0, b""),
        "a kernel module from a file": call("finit_module", 0, b"", 0),
        "another kernel": call("kexec_load", 0, 0, 0, 0),
        "ports of devices": call("iopl", 3),
        "BPF": call("bpf", 0, b"\0" * 128, 128),
        "performance counters": call("perf_event_open", b"\0" * 128, 0, -1, -1, 0),
        "a key ring": call("keyctl", 0, -3, 1),
        "a key": call("add_key", b"user", b"x", b"x", 1, -3),
        "a file by its handle": call("open_by_handle_at", -100, b"\0" * 16, 0),
        "page faults": call("userfaultfd", 0),
        "swap": call("swapon", b"/tmp/x", 0),
        "accounting": call("acct", b"/tmp/x"),
        "quotas": call("quotactl", 0x800002 << 8, b"/dev/sda", 0, b""),
        "restart the machine": lambda: checked(libc.reboot(0x01234567)),
        "a better place in the queue": lambda: f"done {os.nice(-5)}",
        "be the last to be killed": write("/proc/self/oom_score_adj", "-1000"),
        "more open files": lambda: __import__("resource").setrlimit(7, (1_000_000, 1_000_000)) or "done",
        "core dumps": lambda: __import__("resource").setrlimit(4, (1 << 30, 1 << 30)) or "done",
        "the engine's socket": lambda: connected("/var/run/docker.sock"),
        "another engine's socket": lambda: connected("/run/podman/podman.sock"),
    }


def connected(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
    return "done"


def run() -> dict[str, str]:
    found = {}
    for name, way in ways().items():
        try:
            found[name] = way()
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            found[name] = f"refused: {exc}"[:100]
    return found


if __name__ == "__main__":
    print(run(), file=sys.stderr)
