"""GGUF files: what their keys and tensors say about the arithmetic is honoured, or refused by its name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import HEAD_DIM, IDS, PAIRS, TOKENS, write_tiny_gguf
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.errors import ModelLoadError
from tts_decode.model.gguf import files as gguf
from tts_decode.model.gguf.architectures import ARCHITECTURES
from tts_decode.model.gguf.keys import COMPUTED, HARMLESS, NEUTRAL, ROTARY
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread", "cache")


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "dynamic"),
        ("rope.scaling.type", "longrope"),  # without its tensors
        ("rope.scaling.type", 3),
        ("rope.scaling.factor", 0.0),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.factor", NAN),
        ("rope.scaling.factor", INFINITE),
        ("rope.scaling.factor", "4"),
        ("rope.scaling.factor", [2.0, 2.0]),
        ("rope.scaling.factor", 1e37),
        ("rope.scaling.factor", 1e-37),
        ("rope.scaling.attn_factor", 0.0),
        ("rope.scaling.attn_factor", 1e30),
        ("rope.scaling.alpha", 2.0),
        ("rope.scaling.yarn_ext_factor", 1.0),  # acts without YaRN too
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", 1.0),
        ("rope.freq_base", NAN),
        ("rope.freq_base_swa", 10000.0),
        ("rope.dimension_count", 16),  # a Llama turns whole heads
        ("rope.dimension_count", 33),
        ("rope.dimension_sections", [8, 8, 0, 0]),
        ("attention.head_count", 0),
        ("attention.head_count", 7),
        ("attention.head_count", True),
        ("attention.head_count", 2.0),
        ("attention.head_count_kv", [1, 1]),
        ("attention.head_count_kv", None),
        ("attention.key_length", 2**31),
        ("attention.value_length", 16),
        ("attention.scale", 0.5),
        ("attention.scale", NAN),
        ("attention.causal", False),
        ("attention.sliding_window", 16),
        ("attention.sliding_window_pattern", [True, False]),
        ("attention.layer_norm_rms_epsilon", 0.0),
        ("attention.layer_norm_rms_epsilon", NAN),
        ("attention.layer_norm_rms_epsilon", None),
        ("attention.layer_norm_epsilon", 1e-5),
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.temperature_scale", 0.1),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.0625),
        ("logit_scale", True),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.22),
        ("use_parallel_residual", True),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("expert_gating_func", 2),
        ("pooling_type", 1),
        ("block_count", 0),
        ("block_count", 2**31 - 1),
        ("embedding_length", 0),
        ("feed_forward_length", [96, 96]),
        ("context_length", -1),
        ("vocab_size", 100),
        ("a_key_of_tomorrow", 1),
    ],
)
def test_keys_that_would_be_lost(file: Path, cache: Path, key: str, value: object) -> None:
    write_tiny_gguf(file, keys={f"llama.{key}": value})
    before = file.read_bytes()
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError) as error:
            load(file)
        assert str(error.value).startswith(f"model: {file} ")
        assert f"llama.{key}: got " in str(error.value), error.value
        assert "\n" not in str(error.value)
    assert not cache.exists()
    assert file.read_bytes() == before


@pytest.mark.parametrize("key", [*NEUTRAL, *HARMLESS])
def test_keys_that_change_nothing(file: Path, key: str) -> None:
    value = NEUTRAL.get(key, "anything")
    expected = load_config(write(file))
    assert load_config(write(file, {f"llama.{key}": value})).to_dict() == expected.to_dict()


def write(file: Path, keys: dict[str, Any] | None = None, **arguments: Any) -> Path:
    write_tiny_gguf(file, keys=keys, **arguments)
    return file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.type", "adapter"),
        ("general.alignment", 3),
        ("split.count", 3),
        ("adapter.lora.alpha", 16.0),
        ("diffusion.shift_logits", True),
        ("general.architecture", "bloom"),
        ("general.architecture", "no such"),
        ("general.architecture", 7),
        ("tokenizer.ggml.model", "bert"),
        ("tokenizer.ggml.model", None),
        ("tokenizer.ggml.pre", "no such"),
        ("tokenizer.ggml.pre", 5),
        ("tokenizer.ggml.tokens", None),
        ("tokenizer.ggml.merges", None),
        ("tokenizer.ggml.token_type", [1, 2]),
        ("tokenizer.ggml.scores", [NAN] * len(TOKENS)),
        ("tokenizer.chat_template", 5),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.eot_token_id", len(TOKENS)),
        ("tokenizer.ggml.eom_token_id", -1),
        ("tokenizer.ggml.eos_token_id", 2.0),
        ("tokenizer.ggml.bos_token_id", [1, 2]),
        ("tokenizer.ggml.padding_token_id", 2**32 - 1),
        ("tokenizer.ggml.unknown_token_id", "<unk>"),
    ],
)
def test_other_keys_that_would_be_lost(file: Path, key: str, value: object) -> None:
    write_tiny_gguf(file, keys={key: value})
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError, match=rf"{key}: got .*, expected ") as error:
            load(file)
        assert "\n" not in str(error.value)


def test_keys_of_people_and_tools_are_no_obstacle(file: Path) -> None:
    keys = {"general.description": "llama.rope.scaling.type", "quantize.imatrix.file": "x", "me.note": 1}
    model, _ = load_model(write(file, keys), "float32")
    assert model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.1.attn_sinks.weight", "attn_sinks"),
        ("blk.0.attn_q_norm.weight", "attn_q_norm"),
        ("blk.1.ffn_down.bias", "ffn_down.bias"),
        ("blk.2.attn_norm.weight", "a llama of 2 layers"),
        ("output_norm.bias", "output_norm.bias"),
        ("token_types.weight", "token_types"),
        ("rope_factors_long.weight", "rope_factors_short"),
    ],
)
def test_tensors_that_would_be_lost(file: Path, name: str, message: str) -> None:
    write_tiny_gguf(file, tensors={name: np.ones(PAIRS, np.float32)})
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError, match=message):
            load(file)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_up.weight", "blk.0.attn_norm.weight"])
def test_tensors_that_are_missing(file: Path, name: str) -> None:
    """Their weights would be random."""
    write_tiny_gguf(file, tensors={name: None})
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError, match=f"lacks the tensor {name}"):
            load(file)


def test_a_tensor_of_another_shape(file: Path) -> None:
    write_tiny_gguf(file, tensors={"blk.0.ffn_up.weight": np.ones((95, 64), np.float32)})
    with pytest.raises(
        ModelLoadError, match=r"up_proj\.weight got the shape \(95, 64\), expected \(96, 64\)"
    ):
        load_model(file)


@pytest.mark.parametrize("key", ["embedding_length", "feed_forward_length"])
def test_a_model_that_the_file_cannot_hold(file: Path, key: str) -> None:
    """No memory is taken for it."""
    write_tiny_gguf(file, keys={"llama.attention.key_length": HEAD_DIM, f"llama.{key}": 2**29})
    with pytest.raises(ModelLoadError, match="too small"):
        load_model(file)


@pytest.mark.parametrize("version", [0, 1, 4, 2**24])
def test_other_versions_of_the_format(file: Path, version: int) -> None:
    content = write(file).read_bytes()
    file.write_bytes(content[:4] + version.to_bytes(4, "little") + content[8:])
    with pytest.raises(ModelLoadError, match=f"it is of version {version} of the format, expected 2 or 3"):
        load_config(file)


def test_a_key_twice(file: Path) -> None:
    write_tiny_gguf(file, keys={"llama.rope.freq_basf": 5000.0})
    file.write_bytes(file.read_bytes().replace(b"llama.rope.freq_basf", b"llama.rope.freq_base"))
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError, match="a key twice"):
            load(file)


def test_damaged_headers_end_in_one_error(file: Path) -> None:
    """Random bytes in the header: a model that is right, or one line."""
    write_tiny_gguf(file)
    whole = file.read_bytes()
    end = whole.index(b"tokenizer.ggml.tokens")
    names = whole.index(b"token_embd.weight")
    random = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        where = (4, end) if random.random() < 0.7 else (names, names + 1500)
        for place in random.integers(*where, random.integers(1, 4)):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        try:
            load_config(file)
        except ModelLoadError as error:
            lines = str(error).splitlines()
        else:
            continue
        assert len(lines) == 1
        assert lines[0].isprintable()


@pytest.mark.parametrize(
    ("extra", "ends"),
    [
        ({}, {0, 2}),  # <|endoftext|> by its text
        ({"eot": 0}, {0, 2}),
        ({"eom": 5}, {0, 2, 5}),
        ({"eot": 2, "eom": 5}, {0, 2, 5}),
        ({"eos": None, "eot": 7}, {0, 2, 7}),
    ],
)
def test_end_tokens(file: Path, cache: Path, extra: dict[str, int | None], ends: set[int]) -> None:
    write_tiny_gguf(file, keys={f"tokenizer.ggml.{name}_token_id": token for name, token in extra.items()})
    header = load_config(file).eos_token_id
    assert set(header if isinstance(header, list) else [header]) == ends
    for _ in range(2):  # converted, then from the copy
        model, tokenizer = load_model(file, "float32")
        assert TreeDecoder(model, tokenizer, kv_bytes=1 << 20).eos_token_ids == ends
        assert load_config(file).eos_token_id == header
    (copy,) = cache.iterdir()
    kept = json.loads((copy / "generation_config.json").read_text())["eos_token_id"]
    assert kept == model.generation_config.eos_token_id == header


def test_the_end_of_a_turn_ends_a_branch(file: Path) -> None:
    """The most probable token of the model is named as the end of a turn: a greedy branch is over at once."""

    async def greedy(tokens: int) -> tuple[list[int], bool]:
        decoder = TreeDecoder(*load_model(file, "float32"), kv_bytes=1 << 20)
        branch = await decoder.root(IDS[:20].tolist(), SamplingParams(temperature=0, max_step_tokens=tokens))
        step = await branch.step()
        return step.tokens, branch.finished

    write_tiny_gguf(file, scale=0.4)
    free, _ = asyncio.run(greedy(4))
    end = free[2]
    write_tiny_gguf(file, scale=0.4, keys={"tokenizer.ggml.eot_token_id": end})
    tokens, finished = asyncio.run(greedy(12))
    assert finished
    assert len(tokens) <= 3


def test_the_copy_of_an_older_version_is_not_read(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies made before keep a config without the scaling: one is put beside a file, changed to be known."""
    write_tiny_gguf(file)
    monkeypatch.setattr(gguf, "_FORMAT", gguf._FORMAT - 1)
    right, _ = load_model(file, "float32")
    (old,) = cache.iterdir()
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    facts, changed = json.loads((old / "files.json").read_text()), (old / "config.json").stat()
    facts["config.json"] = [changed.st_size, changed.st_mtime_ns]
    (old / "files.json").write_text(json.dumps(facts))
    assert load_model(file, "float32")[0].config.rms_norm_eps == 0.5  # the version it is of reads it
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    for _ in range(2):  # converts, then reads its own copy
        assert load_model(file, "float32")[0].config.rms_norm_eps == right.config.rms_norm_eps
        assert load_config(file).rms_norm_eps == right.config.rms_norm_eps
    assert old in set(cache.iterdir())
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["\u65e5" * 80, "x" * 240, "\udcff", "a\n\x1b[31m"])
def test_files_of_any_name_have_a_copy(tmp_path: Path, cache: Path, name: str) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    file = (tmp_path / "tiny.gguf").rename(tmp_path / f"{name}.gguf")
    load_model(file, "float32")
    (copy,) = cache.iterdir()
    assert copy.name.isascii()
    assert copy.name.isprintable()
    assert load_config(file).vocab_size == len(TOKENS)


def test_the_lists_of_keys_do_not_contradict_each_other() -> None:
    for name, architecture in ARCHITECTURES.items():
        served = {key for key in (*NEUTRAL, *HARMLESS) if architecture.serves(key)}
        assert served <= {*architecture.integers, *architecture.numbers, *architecture.computed}, name
        assert not HARMLESS & NEUTRAL.keys()
        for key in architecture.neutral:
            assert not architecture.serves(key), (name, key)


def test_the_documentation_lists_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text(encoding="utf-8")
    keys = {*ROTARY, *COMPUTED, *NEUTRAL, *HARMLESS, *ARCHITECTURES}
    for architecture in ARCHITECTURES.values():
        keys |= {*architecture.integers, *architecture.numbers, *architecture.computed, *architecture.neutral}
        keys |= architecture.rotary_tensors
    assert sorted(key for key in keys if f"`{key}`" not in text) == []
