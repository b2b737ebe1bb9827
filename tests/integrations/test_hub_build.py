"""The build folder for Hugging Face's `kernels`, and loading it with that package, where it is installed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from needed import missing

from tts_kernels.integrations import hub_build

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build/integrations/kernels/bin/python"
SCRIPT = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])  # torch and numpy, but no editable installation
import kernels, torch
tk = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu")
assert kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu") is tk
assert "tts_kernels" not in sys.modules
q, k, v = torch.randn(2, 4, 32), torch.randn(40, 2, 32), torch.randn(40, 2, 32)
tree = tk.KVTree(8)
pool = tk.KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=8)
branch = tree.create()
pool.append(0, k, v, torch.from_numpy(tree.append([branch], [range(40)]).slots))
tables, lengths = map(torch.from_numpy, tree.block_tables([branch]))
out, _ = tk.tree_attention(q, *pool.layer(0), tk.plan(tables, lengths, torch.tensor([2], dtype=torch.int32)))
mask = torch.arange(40) <= torch.tensor([[38], [39]])
heads = (rows.repeat_interleave(2, 1).transpose(0, 1) for rows in (k, v))
expected = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), *heads, attn_mask=mask)
torch.testing.assert_close(out.transpose(0, 1), expected)
print(tk.__name__)
"""


def test_the_folder(tmp_path: Path) -> None:
    variant = hub_build.build(tmp_path / "out")
    assert variant.parent == tmp_path / "out/build"
    assert variant.name == hub_build.variant_name()
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["id"].isidentifier()
    assert metadata["backend"] == {"type": "cpu"}
    assert (variant / "__init__.py").exists()
    assert [file.suffix for file in variant.glob("_core.*") if file.suffix != ".pyi"] == [
        Path(sysconfig.get_config_var("EXT_SUFFIX")).suffix
    ]
    again = json.loads((hub_build.build(tmp_path / "again") / "metadata.json").read_text())
    assert again == metadata


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "tts_kernels.integrations.hub_build", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    words = "which is there, expected a new or an empty folder; pass another"
    assert done.stderr == f"out: got {tmp_path}, {words}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    with pytest.raises(FileExistsError, match=words):
        hub_build.build(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    with pytest.raises(OSError, match=rf"^out: got {out}, expected a folder that can be written: Not a dir"):
        hub_build.build(out)
    with pytest.raises(TypeError, match=r"^out: got str, expected a Path; pass pathlib\.Path"):
        hub_build.build(str(tmp_path / "out"))  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that takes no folders")
def test_the_command_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hub_build", "/proc/x"])
    assert hub_build.main() == 1
    assert capsys.readouterr().err.startswith("out: got /proc/x, expected a folder that can be written: ")


@pytest.mark.parametrize("there", [False, True])
def test_what_was_written_is_gone_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    if there:
        out.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(hub_build.shutil, "copy", full)
        with pytest.raises(
            OSError, match=r"^out: got .*, expected a folder that can be written: No space left"
        ):
            hub_build.build(out)
    assert out.exists() == there
    assert not there or not list(out.iterdir())
    hub_build.build(out)


def test_kernels_loads_it(tmp_path: Path) -> None:
    """In a process that has torch, but no tts_kernels."""
    if not PYTHON.exists():
        missing("needs Hugging Face's kernels in build/integrations/kernels")
    command = [sys.executable, "-m", "tts_kernels.integrations.hub_build", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    done = subprocess.run(
        [PYTHON, "-I", "-c", SCRIPT, tmp_path / "out", sysconfig.get_path("platlib")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    metadata = json.loads(next((tmp_path / "out/build").glob("*/metadata.json")).read_text())
    assert done.stdout == metadata["id"] + "\n", done.stderr
