"""The memory that a process may use: the limits of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tts_kernels import machine_memory
from tts_kernels.machine_memory import memory_bytes
from tts_kernels.pool import default_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
ANY = 9223372036854771712  # what version 1 says where there is no limit
TWO, ONE = "memory.max", "memory/memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("told", "limits", "expected"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", {TWO: "max"}, MACHINE),
        ("0::/\n", {TWO: str(64 * MIB)}, 64 * MIB),  # the container's own group is the root it sees
        ("0::/a/b\n", {f"a/{TWO}": str(8 * MIB), f"a/b/{TWO}": "max"}, 8 * MIB),
        ("0::/a/b\n", {f"a/{TWO}": str(8 * MIB), f"a/b/{TWO}": str(9 * MIB)}, 8 * MIB),
        ("0::/docker/77\n", {TWO: str(5 * MIB)}, 5 * MIB),
        ("0::/../../77\n", {TWO: str(5 * MIB)}, 5 * MIB),
        ("0::/a\n", {f"unified/a/{TWO}": str(5 * MIB)}, 5 * MIB),
        ("4:memory:/docker/77\n0::/\n", {ONE: str(6 * MIB)}, 6 * MIB),
        ("4:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": str(7 * MIB), ONE: str(ANY)}, 7 * MIB),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": str(7 * MIB)}, MACHINE),
        ("4:memory:/\n", {ONE: str(ANY)}, MACHINE),
        ("0::/\n", {TWO: "-1"}, MACHINE),
        ("nothing that is known\n\n:\n", {TWO: ""}, MACHINE),
    ],
)
def test_the_lowest_limit_counts(told: str, limits: dict[str, str], expected: int, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(told)
    for name, text in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert memory_bytes(tmp_path / "cgroup", tmp_path / "groups") == expected


def test_systems_without_control_groups(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path / "none", tmp_path) == MACHINE


def test_pools_take_a_quarter_of_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    monkeypatch.setattr(machine_memory.memory_bytes, "__defaults__", (tmp_path / "cgroup", tmp_path))
    assert default_bytes(torch.device("cpu")) == 16 * MIB
