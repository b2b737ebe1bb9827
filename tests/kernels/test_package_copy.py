"""A copy of tts_kernels under another name, as kernel hubs load packages: both work in one process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tts_kernels
from tts_kernels import _core

SCRIPT = """
import importlib, re, sys
import torch
import tts_kernels as first
second = importlib.import_module(sys.argv[1])
assert second is not first

q, k, v = torch.randn(3, 4, 32), torch.randn(40, 2, 32), torch.randn(40, 2, 32)
results = []
for tk in first, second:
    tree = tk.KVTree(8)
    pool = tk.KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=8)
    branch = tree.create()
    pool.append(0, k, v, torch.from_numpy(tree.append([branch], [range(40)]).slots))
    tables, lengths = map(torch.from_numpy, tree.block_tables([branch]))
    plan = tk.plan(tables, lengths, torch.tensor([3], dtype=torch.int32))
    results.append(tk.tree_attention(q, *pool.layer(0), plan))
    try:
        tree.append([branch], [range(1000)])
    except tk.OutOfPagesError as error:
        assert isinstance(error, tk.TTSError) and isinstance(error, RuntimeError)
    else:
        raise AssertionError("no OutOfPagesError")
assert all(map(torch.equal, *results))
assert first.OutOfPagesError is not second.OutOfPagesError and first.KVTree is not second.KVTree
names = ["tts_kernels", re.sub(r"[.-]", "_", sys.argv[1])]
operators = [getattr(torch.ops, name).tree_attention.default for name in names]
assert operators[0] is not operators[1]
try:
    second.tree_attention(q, *pool.layer(0), first.plan(tables, lengths))
except TypeError as error:
    assert "plan: got TreePlan, expected a TreePlan" in str(error), error
else:
    raise AssertionError("a plan of the other copy was taken")
print("same bits")
"""


@pytest.mark.parametrize("name", ["copied_kernels", "hub.kernels-4f2a"])
def test_a_copy_under_another_name(name: str, tmp_path: Path) -> None:
    make_copy(tmp_path, name)
    done = run(tmp_path, SCRIPT, name)
    assert done.stdout == "same bits\n", done.stderr


def test_two_copies_for_one_namespace(tmp_path: Path) -> None:
    for name in ("kernels-v2", "kernels_v2"):
        make_copy(tmp_path, name)
    script = "import importlib; [importlib.import_module(name) for name in ('kernels-v2', 'kernels_v2')]"
    done = run(tmp_path, script)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: kernels_v2.ops: got torch.ops.kernels_v2 of another package, expected a name of its "
        "own; rename one of the two copies"
    )


def make_copy(folder: Path, name: str) -> None:
    copy = folder.joinpath(*name.split("."))
    copy.parent.mkdir(exist_ok=True)
    shutil.copytree(
        Path(tts_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "_core.*.so")
    )
    shutil.copy(_core.__file__, copy)


def run(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
