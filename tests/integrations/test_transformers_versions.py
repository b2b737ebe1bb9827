"""TreeCache under other versions of transformers, of those in build/integrations, each in a process.

pip install --no-deps --target build/integrations/transformers-5.19.0 transformers==5.19.0
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(ROOT.glob("build/integrations/transformers-*"))
SCRIPT = """
import torch, transformers
from tiny_models import tiny_model
from tts_kernels.integrations.transformers import TreeCache, register

register()
torch.set_num_threads(1)
ids = torch.randint(0, 256, (3, 37))
mask = torch.ones_like(ids)
mask[1, :9] = mask[2, :30] = 0
for family in "llama", "qwen3", "mistral", "gemma2":
    own, tree = tiny_model(family), tiny_model(family)
    own.set_attn_implementation("eager")
    tree.set_attn_implementation("tts")

    def same(rows, mask, prefill=0, **options):
        cache = TreeCache(tree.config, kv_bytes=1 << 25)
        if prefill:
            cache.prefill(tree, rows, mask, copies=prefill)
        outputs = []
        for model, given in (own, {}), (tree, {"past_key_values": cache}):
            torch.manual_seed(1)
            outputs.append(model.generate(rows, attention_mask=mask, max_new_tokens=12, **options, **given))
        assert torch.equal(*outputs), (family, options)

    same(ids, mask, do_sample=False)
    same(ids, mask, do_sample=True, top_k=0, num_return_sequences=3)
    same(ids, mask, num_beams=4)
    same(ids, mask, num_beams=4, prefill=4)
    same(ids[:1], mask[:1], prompt_lookup_num_tokens=3, do_sample=False)
print("served", transformers.__version__)
"""


@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: folder and folder.name)
def test_a_tested_version(folder: Path | None) -> None:
    if folder is None:
        pytest.skip("needs a version of transformers in build/integrations")
    path = os.pathsep.join(map(str, (folder, ROOT / "tests/helpers")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    version = folder.name.removeprefix("transformers-")
    assert done.stdout.splitlines()[-1:] == [f"served {version}"], done.stderr
