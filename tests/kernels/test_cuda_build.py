"""The CUDA kernels without a GPU: what the compiler makes of them, and what their launchers refuse.

Their values are checked by csrc/tests/test_cuda_kernels.cpp, which runs the same sources on the CPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tts_kernels import _core
from tts_kernels.backends import cuda
from tts_kernels.backends.launch import AttentionOptions, WorkCapacity, WorkLaunch

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc")
BUILT = pytest.mark.skipif(not _core.cuda_archs, reason="this build has no CUDA kernels")
RESOURCES = re.compile(
    r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def nvcc_version() -> tuple[int, ...]:
    if NVCC is None:
        return ()
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


@pytest.mark.skipif(nvcc_version() < (12, 8), reason="needs nvcc 12.8 or newer")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_two_blocks_fit_a_multiprocessor(head_dim: int, tmp_path: Path) -> None:
    archs = ["80", "90", "100"]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    source = CSRC / "cuda" / f"tree_attention_d{head_dim}.cu"
    output = ["-fatbin", "-o", str(tmp_path / "kernels.fatbin")]
    command = [str(NVCC), "-std=c++20", "-O3", f"-I{CSRC}", *targets, "-Xptxas", "-v", *output, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = RESOURCES.findall(done.stdout + done.stderr)
    assert sorted(arch for _, arch, *_ in kernels) == sorted(
        2 * [f"sm_{arch}" for arch in archs]
    )  # two dtypes
    for name, _, *numbers in kernels:
        assert "tree_attention_kernel" in name
        stack, stores, loads, registers = map(int, numbers)
        assert stack == stores == loads == 0  # arrays of the kernel are registers
        assert 2 * 128 * registers <= 65536  # the launch asserts as much of shared memory


@BUILT
def test_what_is_served() -> None:
    supports = cuda.supports
    for dtype in (torch.float16, torch.bfloat16):
        assert [d for d in (32, 64, 80, 96, 128, 256) if supports("tree_attention", dtype, d)] == [64, 128]
    assert not supports("tree_attention", torch.float32, 64)
    assert supports("append_kv", torch.float32, 80)
    assert supports("copy_pages", torch.bfloat16, 256)
    assert not supports("copy_pages", torch.float64, 64)
    assert not supports("gather_kv", torch.bfloat16, 64)


def test_refusals_name_what_is_missing() -> None:
    pages = torch.zeros(2, 1, 16, 96, dtype=torch.bfloat16)
    q, lse = torch.zeros(1, 1, 96, dtype=torch.bfloat16), torch.zeros(1, 1)
    launch = WorkLaunch(torch.zeros(1), torch.zeros(1), WorkCapacity(16, 16, 16, 16, 16), 1, 0)
    expected = "head_dim 96" if _core.cuda_archs else "no CUDA kernels"
    with pytest.raises(ValueError, match=expected):
        cuda.tree_attention(q, pages, pages, launch, AttentionOptions(1.0, 0, 0.0), q, lse)


@BUILT
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 96}, "head_dim: got 96"),
        ({"scale": -1.0}, "scale: got -1"),
        ({"out": 72}, "multiples of 16"),
        ({"num_items": 17}, "num_items, num_merges: got 17"),
        ({"num_merges": 17}, "num_items, num_merges: got 1 and 17"),
    ],
)
def test_launches_check_what_the_host_knows(changes: dict[str, float], message: str) -> None:
    given = {"head_dim": 64, "scale": 1.0, "out": 64, "num_items": 1, "num_merges": 0, **changes}
    strides, capacity = (1024, 1024, 64), (16, 16, 16, 16, 16)
    pages = _core.cuda.Pages(64, 64, strides, strides, (2, 1, 16, int(given["head_dim"])), 2)
    launch = _core.cuda.WorkLaunch(64, 64, capacity, int(given["num_items"]), int(given["num_merges"]))
    q = _core.cuda.Rows(64, (64, 64))
    with pytest.raises(ValueError, match=message):
        _core.cuda.tree_attention(
            pages, q, 1, 1, True, launch, int(given["out"]), 64, given["scale"], 0, 0.0, 0, 0
        )


@BUILT
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_driver_launches_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    pages = torch.zeros(3, 2, 2, 16, 64, dtype=torch.bfloat16)  # three layers
    rows, slots = torch.zeros(5, 2, 64, dtype=torch.bfloat16), torch.arange(5, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"append_kv: .*\(cudaError"):
        cuda.append_kv(rows, rows, pages[0], pages[0], slots)
    with pytest.raises(RuntimeError, match=r"copy_pages: .*\(cudaError"):
        cuda.copy_pages(pages, pages, torch.tensor([[0, 1]], dtype=torch.int32))
    capacity = WorkCapacity(16, 16, 16, 16, 16)
    work, partials = torch.zeros(1024, dtype=torch.int32), torch.zeros(1024)
    options = AttentionOptions(0.125, 2**30, 0.0)
    for items, merges, kernel in ((1, 0, "tree_attention"), (0, 1, "merge_partials")):
        launch = WorkLaunch(work, partials, capacity, items, merges)
        with pytest.raises(RuntimeError, match=rf"{kernel}: .*\(cudaError"):
            cuda.tree_attention(
                rows, pages[0], pages[0], launch, options, torch.empty_like(rows), torch.empty(5, 2)
            )
    cuda.append_kv(rows[:0], rows[:0], pages[0], pages[0], slots[:0])  # nothing to launch
