"""TreeCache under the other versions of transformers that `make integrations` installs, each in a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from needed import missing

from tts_kernels.integrations.transformers.versions import TESTED

ROOT = Path(__file__).parents[2]
VERSIONS = re.findall(
    r"[\d.]+", re.findall(r"^TRANSFORMERS_VERSIONS := (.*)", (ROOT / "Makefile").read_text("utf-8"), re.M)[0]
)
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


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tested_version(version: str) -> None:
    folder = ROOT / f"build/integrations/transformers-{version}"
    if not (folder / "installed.stamp").exists():
        missing(f"needs transformers {version} in build/integrations")
    path = os.pathsep.join(map(str, (folder, ROOT / "tests/helpers")))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.splitlines()[-1:] == [f"served {version}"], done.stderr


def test_each_minor_version_is_tested() -> None:
    """The last version is the other tests' version, as far as this environment has it."""
    (first, last) = TESTED
    minors = [tuple(map(int, version.split(".")[:2])) for version in VERSIONS]
    assert minors == [(first[0], minor) for minor in range(first[1], last[1])]
