"""The benches of quantised models: files of random weights, prompts that are kept, the read stream, reports,
and log-probabilities of a text."""

from __future__ import annotations

import hashlib
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import TOKENS, write_tiny_gguf
from tiny_models import VOCAB, byte_tokenizer, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from tts_decode import TreeDecoder
from tts_decode.model.loading import load_model

from benches.decode_comparison import closing, start, try_all
from benches.peers.engines import Engine, PeerError
from benches.quantised import random_gguf
from benches.quantised.cases import CASES, find
from benches.quantised.files import step_bytes
from benches.quantised.gemma import join_parts
from benches.quantised.random_gguf import SHAPES, repeat_layers, tensor_shapes, write
from benches.quantised.read_stream import ReadStream
from benches.quantised.report import ratios, stream_shares
from benches.quantised_decoding import kept, prefill_all
from benches.quantised_quality import compare, decoder_logprobs, model_logprobs, windows_of

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": len(TOKENS) + 7,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_gguf(tmp_path / "tokenizer.gguf")
    return tmp_path / "tokenizer.gguf"


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32) * 0.02


@pytest.mark.parametrize(("kind", "steps"), [("Q8_0", 127), ("Q4_0", 8)])
def test_random_tensors_are_what_was_drawn_but_for_rounding(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, kind: str, steps: int
) -> None:
    monkeypatch.setattr(random_gguf, "CHUNK", 1000)  # so that tensors are drawn in several parts
    config = AutoConfig.for_model("llama", rope_parameters=LLAMA3, **SIZES)
    write(config, kind, tmp_path / "tiny.gguf", tokenizer)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert set(tensors) == set(tensor_shapes(config))
    for name, shape in tensor_shapes(config).items():
        found = tensors.pop(name)
        assert tuple(reversed(found.shape)) == shape
        if name == "rope_freqs.weight":
            continue
        assert found.tensor_type.name == ("F32" if len(shape) == 1 else kind)
        values = gguf.dequantize(found.data, found.tensor_type)
        expected = drawn(name, shape)
        if len(shape) == 1:
            np.testing.assert_array_equal(values, expected)
            continue
        groups = (-1, shape[-1] // 32, 32)
        step = np.abs(expected.reshape(groups)).max(-1, keepdims=True) / steps
        # Half a step; a whole one at the far end of Q4_0, which has 8 below 0 and 7 above. float16 adds some.
        off = np.abs(values.reshape(groups) - expected.reshape(groups))
        assert (off <= step * (0.57 if kind == "Q8_0" else 1.01)).all()


def test_a_random_file_is_the_model_that_its_config_says(tmp_path: Path, tokenizer: Path) -> None:
    """Its rotary factors are those of Llama 3, and its tokenizer the other file's, filled up."""
    config = AutoConfig.for_model("llama", rope_parameters=LLAMA3, **SIZES)
    write(config, "Q8_0", tmp_path / "tiny.gguf", tokenizer)
    model, texts = load_model(tmp_path / "tiny.gguf", "float32")
    _, plain = load_model(tokenizer, "float32")
    assert len(texts) == SIZES["vocab_size"]
    assert texts("Yes, he").input_ids == plain("Yes, he").input_ids
    expected = AutoModelForCausalLM.from_config(config)
    expected.load_state_dict(model.state_dict())
    ids = torch.randint(SIZES["vocab_size"], (1, 200))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected.eval()(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_repeated_layers_are_those_of_the_base(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    config = AutoConfig.for_model("llama", rope_parameters=LLAMA3, **SIZES)
    write(config, kind, tmp_path / "base.gguf", tokenizer)
    config.num_hidden_layers = 5
    repeat_layers(config, kind, tmp_path / "base.gguf", tmp_path / "tiny.gguf", tokenizer)
    base, found = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("base", "tiny")
    )
    assert set(found) == set(tensor_shapes(config))
    for name, tensor in found.items():
        _, layer, *rest = name.split(".")
        source = ".".join(["blk", "00011"[int(layer)], *rest]) if name.startswith("blk.") else name
        assert tensor.tensor_type == base[source].tensor_type
        np.testing.assert_array_equal(tensor.data, base[source].data)
    model, _ = load_model(tmp_path / "tiny.gguf", "float32")
    assert model.config.num_hidden_layers == 5
    weights = model.state_dict()
    first, last = (weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (2, 3))
    assert not torch.equal(first, last)


@pytest.mark.parametrize("name", SHAPES)
def test_names_of_tensors_are_those_of_the_architecture(name: str) -> None:
    model_type, sizes = SHAPES[name]
    config = AutoConfig.for_model(model_type, **{"vocab_size": 49152, **sizes})
    architecture = gguf.MODEL_ARCH[model_type.upper()]
    known = [gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]]
    layers = range(config.num_hidden_layers)
    allowed = {f"{name.format(bid=layer)}.weight" for name in known for layer in layers}
    names = set(tensor_shapes(config))
    assert names <= allowed
    if model_type == "olmoe":
        assert names == allowed


def test_weights_of_a_step(tmp_path: Path, tokenizer: Path) -> None:
    """An embedding is read whole where it is the head too."""
    tied = AutoConfig.for_model("llama", **SIZES)
    untied = AutoConfig.for_model("llama", **SIZES | {"tie_word_embeddings": False})
    for config in (tied, untied):
        path = tmp_path / f"{config.tie_word_embeddings}.gguf"
        write(config, "Q8_0", path, tokenizer)
        matrices = SIZES["vocab_size"] * 64 + 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64)
        norms = 5 * 64
        assert step_bytes(path) == matrices * 34 // 32 + norms * 4


PEER = """
from adapter import KeptPrompt, serve

class Keeping(KeptPrompt):
    about = {}
    reads = 0

    def __init__(self, options):
        pass

    def prefill(self, prompt):
        self.reads += 1
        if len(prompt) == 13:
            raise MemoryError("too long")
        return float(len(prompt))

    def decode(self, branches, tokens):
        return self.reads + branches * tokens / 1000

serve(Keeping)
"""


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    from benches.peers import engines

    (tmp_path / "keeping.py").write_text(PEER)
    shutil.copy(engines.HERE / "adapter.py", tmp_path)
    monkeypatch.setattr(engines, "HERE", tmp_path)
    return {name: Engine("keeping", "", "file") for name in ("a", "b, one", "b, other")}


def test_a_prompt_is_prefilled_once(keeping: dict[str, Engine], tmp_path: Path) -> None:
    failed: dict[str, str] = {}
    with closing() as processes:
        start(processes, keeping, {"file": tmp_path}, tmp_path, {}, failed)
        assert {name: process.about["memory"]["loaded"] > 0 for name, process in processes.items()} == (
            dict.fromkeys(keeping, True)
        )
        found = prefill_all(processes, 100, 2, failed)
        assert [(r["engine"], r["setting"], r["seconds"]) for r in found] == [
            ("a", "a", [100, 100]),
            ("b", "b, one", [100, 100]),
            ("b", "b, other", [100, 100]),
        ]
        for branches in (1, 8):
            tried = try_all(processes, (100, branches), 1.0, failed, kept)
            # Three prompts were read: one while the process loaded.
            assert [r["step_seconds"] for r in tried] == [pytest.approx(3 / 4 + branches / 1000)] * 3
            assert [r["prefill_seconds"] for r in tried] == [100] * 3
        assert prefill_all(processes, 13, 1, failed) == []
        assert not processes
    assert failed == {f"{name}, 13 tokens": "MemoryError: too long" for name in keeping}


def test_ours_decodes_from_a_prompt_again_and_again(tmp_path: Path, tokenizer: Path) -> None:
    failed: dict[str, str] = {}
    engine = {"ours": Engine("tts_peer", "", "file", {"dtype": "float32"})}
    prompt = [int(token) for token in np.random.default_rng(0).integers(3, len(TOKENS), 300)]
    with closing() as processes:
        # The file's vocabulary has fewer tokens than what every adapter is warmed up with.
        config = AutoConfig.for_model("llama", **SIZES | {"vocab_size": 2000})
        write(config, "Q8_0", tmp_path / "tiny.gguf", tokenizer)
        start(processes, engine, {"file": tmp_path / "tiny.gguf"}, tmp_path, {}, failed, 120.0)
        assert not failed
        process = processes["ours"]
        for _ in range(2):
            assert process.keep(prompt, 60) > 0
            for branches, tokens in ((1, 3), (8, 5), (1, 3)):
                assert process.decode(branches, tokens, 60)["decode"] > 0


def test_parts_of_a_file_are_joined_in_order_and_checked(tmp_path: Path) -> None:
    parts = [tmp_path / f"model.part{number}" for number in range(3)]
    for number, part in enumerate(parts):
        part.write_bytes(bytes([number]) * 5)
    whole = b"\0" * 5 + b"\1" * 5 + b"\2" * 5
    join_parts(parts, tmp_path / "model.gguf", hashlib.sha256(whole).hexdigest())
    assert (tmp_path / "model.gguf").read_bytes() == whole
    with pytest.raises(PeerError, match=r"other\.gguf: got .* as digest of 3 parts, expected 00"):
        join_parts(parts, tmp_path / "other.gguf", "00")
    assert not [*tmp_path.glob("other*")]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_read_stream_reads_all() -> None:
    stream = ReadStream(threads=3, size=3 << 20)
    assert stream.read() == 3 << 20
    assert stream.rate() > 0


def record(engine: str, prompt: int, branches: int, speed: float) -> dict[str, Any]:
    return {"engine": engine, "prompt": prompt, "branches": branches, "tokens_per_second": speed}


def test_ratios_are_to_the_best_other_engine() -> None:
    records = [
        record("ours", 512, 1, 30.0),
        record("llama.cpp", 512, 1, 20.0),
        record("OpenVINO", 512, 1, 10.0),
        record("ours", 512, 8, 50.0),
        record("OpenVINO", 512, 64, 10.0),
        record("llama.cpp", 4096, 1, 1.0),
    ]
    assert ratios(records, 512) == {1: 1.5}
    assert ratios(records, 4096) == {}
    shares = stream_shares(records, 512, 1000, [10_000.0, 40_000.0, 90_000.0])
    assert shares == {"ours": 0.75, "llama.cpp": 0.5, "OpenVINO": 0.25}


def test_cases_are_found_by_name_and_by_another_kind() -> None:
    assert find("wide/Q4_0") is CASES["wide/Q4_0"]
    other = find("llama-1b/Q5_K_M")
    assert (other.name, other.prompts) == ("llama-1b/Q5_K_M", CASES["llama-1b/Q4_0"].prompts)
    for name in ("wide", "narrow/Q4_0"):
        with pytest.raises(ValueError, match=f"case: got '{name}', expected one of smollm2/Q4_1, "):
            find(name)


def test_logprobs_of_a_text_are_the_models_own() -> None:
    model = tiny_model()
    windows = [torch.randint(VOCAB, (size,)).tolist() for size in (40, 40, 9)]
    found = decoder_logprobs(TreeDecoder(model, byte_tokenizer()), windows)
    expected = []
    with torch.no_grad():
        for window in windows:
            logits = model(torch.tensor([window])).logits[0].double()
            expected += [logits[i].log_softmax(-1)[token].item() for i, token in enumerate(window[1:])]
    assert len(found) == 39 + 39 + 8
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        model_logprobs(model, windows), torch.tensor(expected).double(), atol=1e-4, rtol=1e-4
    )


def test_windows_begin_anew() -> None:
    ids = list(range(100, 200))

    class Plain:
        bos_token_id, add_bos_token = 7, False

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": ids}

    class Beginning(Plain):
        add_bos_token = True

    found = windows_of(Beginning(), "text", 31, 60)
    assert found == [[7, *range(100, 130)], [7, *range(130, 160)]]
    assert windows_of(Plain(), "text", 30, 60) == [ids[:30], ids[30:60]]
    with pytest.raises(ValueError, match="tokens: got 101, the text has 100"):
        windows_of(Plain(), "text", 30, 101)


def test_perplexities_and_differences() -> None:
    reference = torch.tensor([-1.0, -3.0]).double()
    found = compare(reference, torch.tensor([-1.5, -3.0]).double())
    assert found["reference_perplexity"] == pytest.approx(math.exp(2))
    assert found["perplexity"] == pytest.approx(math.exp(2.25))
    assert found["change"] == pytest.approx(math.exp(0.25) - 1)
    assert found["mean_difference"] == pytest.approx(0.25)
    assert found["largest_difference"] == pytest.approx(0.5)
