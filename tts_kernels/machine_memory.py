"""The memory that a process may use: the machine's, or less if a container or a service limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory_bytes(process: Path = _PROCESS, groups: Path = _GROUPS) -> int:
    """Returns the machine's memory, or the lowest limit of the control groups that the process is in (Linux).

    process, groups: where the system reports them. Docker, Kubernetes, systemd and batch systems set
    `memory.max` (version 2) or `memory.limit_in_bytes` (version 1). A group without a limit says "max", or
    more than any machine has.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(process, groups)])


def _limits(process: Path, groups: Path) -> Iterator[int]:
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from _of_group(groups / "memory", path, "memory.limit_in_bytes")
        elif not controllers:
            for root in (groups, groups / "unified"):  # the latter if version 1 is also mounted
                yield from _of_group(root, path, "memory.max")


def _of_group(root: Path, path: str, name: str) -> Iterator[int]:
    """Yields the limits of a group and of all groups that contain it.

    Inside a container its own group may be the root, whatever its path says.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # the group lies outside this namespace
        parts = []
    for depth in range(len(parts) + 1):
        try:
            text = root.joinpath(*parts[:depth], name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isascii() and text.isdigit():
            yield int(text)
