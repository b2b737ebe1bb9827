"""The process that becomes a sandboxed program. It is run as a file and loads nothing of the package.

Argument: a descriptor on which it says why it cannot isolate itself. Standard input: a JSON object with the
fields of `Limits`, `code`, `folder` and `isolated`.

Isolated, it has its own user, network, process, IPC and mount namespaces: no network, no other processes, a
file system that is read-only except for an empty folder in memory, and no capability. Limits apply in either
case.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

_NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000  # user, net, pid, IPC, mount
_MOUNT_SETATTR, _HERE, _RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _PRIVATE = 1, 1 << 18
_NO_SUID, _NO_DEVICES = 2, 4
_DEATH_SIGNAL, _DROP_BOUND, _NO_NEW_PRIVILEGES = 1, 24, 38
_CAPABILITIES_3 = 0x20080522


def main() -> None:
    told = int(sys.argv[1])
    settings = json.load(sys.stdin)
    os.set_inheritable(told, False)
    if settings["isolated"]:
        try:
            isolate(settings, told)
        except OSError as error:
            os.write(told, f"{error.strerror} ({error.filename or 'unshare'})".encode())
            os._exit(1)
    else:
        libc().prctl(_DEATH_SIGNAL, signal.SIGKILL)
    os.close(told)
    limit(settings)
    run(settings)


def libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def isolate(settings: dict[str, Any], told: int) -> None:
    """Returns in the first process of the new namespaces; the caller's waits for it and ends like it."""
    c = libc()
    user, group = os.geteuid(), os.getegid()
    checked(c.unshare(_NEW_NAMESPACES), "unshare")
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{user} {user} 1")
    write("/proc/self/gid_map", f"{group} {group} 1")
    begun, ready = os.pipe()
    program = os.fork()
    if program:
        for descriptor in (ready, told, 0, 1, 2):  # their readers wait for the program only
            os.close(descriptor)
        if os.read(begun, 1) == b"":  # it could not isolate itself and said so
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status if status >= 0 else 128 - status)
    c.prctl(_DEATH_SIGNAL, signal.SIGKILL)
    lock(c, settings)
    os.write(ready, b"1")
    os.close(begun)
    os.close(ready)


def lock(c: Any, settings: dict[str, Any]) -> None:
    """Makes the file system read-only except for the folder, and drops all rights in the namespaces."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, _PRIVATE, 0)
    checked(c.syscall(_MOUNT_SETATTR, _HERE, b"/", _RECURSIVE, ctypes.byref(attributes), 32), "mount_setattr")
    size = f"size={settings['files']}".encode()
    folder = settings["folder"].encode()
    checked(c.mount(b"tmpfs", folder, b"tmpfs", _NO_SUID | _NO_DEVICES, size), "mount")
    c.mount(
        b"proc", b"/proc", b"proc", _NO_SUID | _NO_DEVICES | _READ_ONLY, None
    )  # refused in some containers
    for capability in range(64):
        c.prctl(_DROP_BOUND, capability, 0, 0, 0)
    checked(c.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    checked(c.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def limit(settings: dict[str, Any]) -> None:
    seconds = 2 * int(settings["seconds"]) + 10  # in case nobody watches it any more
    for kind, most in (
        ("RLIMIT_AS", settings["memory"]),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", settings["files"]),
        ("RLIMIT_NPROC", settings["processes"]),
        ("RLIMIT_NOFILE", 256),
        ("RLIMIT_CORE", 0),
    ):
        try:
            resource.setrlimit(getattr(resource, kind), (most, most))
        except (ValueError, OSError, AttributeError):  # a system without it
            if settings["isolated"]:
                raise


def run(settings: dict[str, Any]) -> None:
    """Becomes the program."""
    os.chdir(settings["folder"])
    write("program.py", settings["code"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    environment = {
        name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ
    }
    environment |= {"HOME": settings["folder"], "TMPDIR": settings["folder"], "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-I", "-B", "-X", "utf8", "program.py"], environment)


if __name__ == "__main__":
    main()
