"""Triton kernels compiled for GPUs that are not there: the code fits and has the instructions it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aot_compile import VARIANTS, Variant

pytest.importorskip("triton")

# Most shared memory of a block, in bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "TRITON_DEFAULT_FP_FUSION": "1",  # Triton is about to change its default
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).parents[1] / "helpers" / "aot_compile.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_compiles_and_fits(compiled: dict[str, Any], variant: Variant) -> None:
    result = compiled[variant.name]
    assert result["cubin"] > 0
    assert result["shared"] <= SHARED[variant.architecture]
    assert result["stack"] == 0, "registers spill"
    operations = result["ptx"]
    if variant.sparse and variant.kernel != "_attend":
        assert (operations["mma.sync"] > 0) == (variant.kernel in ("_score", "_page_logits"))
        return
    if variant.kernel != "_attend":
        if variant.kv_heads > 1:  # enough elements for 16 bytes a thread
            assert operations["ld.global.v4"] > 0
            assert operations["st.global.v4"] > 0 or variant.kernel == "_merge"
        return
    assert operations["cp.async.cg"] > 0  # 16 bytes each, ahead of their use
    if variant.dtype == "float32":
        assert not any(operations[mma] for mma in ("mma.sync", "wgmma.mma_async", "tcgen05.mma"))
        return
    assert operations["mma.sync"] > 0  # tiles of 16 rows, and all of sm_80
    assert (operations["wgmma.mma_async"] > 0) == (variant.architecture == 90)
    assert (operations["tcgen05.mma"] > 0) == (variant.architecture == 100)
