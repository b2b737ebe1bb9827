"""Converted copies of quantised GGUF files: mapped, never half there. And files that are refused."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_gguf import TOKENS, gguf, write_tiny_gguf
from tiny_gguf_models import CASES, random_model, write_model
from tiny_quantised import HIDDEN, INNER, KEYS, random_tensor, write_quantised
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tts_decode.errors import ModelLoadError
from tts_decode.model import memory
from tts_decode.model.gguf import cache as copies
from tts_decode.model.gguf import files as gguf_files
from tts_decode.model.gguf import quantised
from tts_decode.model.gguf.header import Header
from tts_decode.model.loading import load_config, load_model
from tts_decode.model.quantised_modules import Quantised, QuantisedLinear
from tts_decode.model.tensor_file import Part, write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(file: Path, cache: Path) -> Path:
    write_quantised(file, "Q4_0")
    return file


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def files(folder: Path) -> set[Path]:
    return {entry.relative_to(folder) for entry in folder.rglob("*")} if folder.exists() else set()


def mapped_file(address: int) -> str | None:
    """The file whose mapping holds the address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, *_, name = line.split(maxsplit=5)
        begin, end = (int(place, 16) for place in places.split("-"))
        if begin <= address < end:
            return name
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_of_a_copy_are_mapped(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_SETTLED_SECONDS", -1.0)
    stages: list[str] = []
    first, tokenizer = load_model(tiny, on_progress=stages.append)  # what is quantised stays so by default
    assert stages == ["packing tiny.gguf (only once)"]
    (copy,) = cache.iterdir()
    monkeypatch.setattr(quantised, "plan_of", lambda *_: pytest.fail("converted twice"))
    again, tokenizer_again = load_model(tiny, on_progress=stages.append)
    assert stages[1:] == ["mapping the weights"]
    for model in (first, again):
        for module in model.modules():
            if isinstance(module, Quantised):
                assert mapped_file(module.panels.data_ptr()) == str(copy / "weights.safetensors")
                assert module.panels.data_ptr() % 64 == 0
    assert torch.equal(logits(first), logits(again))
    assert tokenizer_again("hello").input_ids == tokenizer("hello").input_ids
    config = load_config(tiny).to_dict()  # from the file: the copy's has a folder and a dtype besides
    assert config == again.config.to_dict() | {name: config[name] for name in ("dtype", "_name_or_path")}
    before = (copy / "weights.safetensors").read_bytes()
    module = again.model.layers[0].mlp.up_proj
    module.panels.zero_()  # in this process only
    assert (copy / "weights.safetensors").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_tensor_of_the_file_at_a_time_is_in_memory_when_it_is_packed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What numpy holds of the file when a tensor is packed is that tensor, and no mapping of the file."""
    held = []

    def packed(file: Path, parts: Sequence[Part]) -> None:
        tracemalloc.start()
        for part in parts:
            part.make()
            held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert str(tiny) not in Path("/proc/self/maps").read_text()
        write_tensors(file, parts)

    monkeypatch.setattr(quantised, "write_tensors", packed)
    load_model(tiny)
    assert len(held) > 10
    assert max(held) < tiny.stat().st_size // 10


def test_dtypes_and_devices_decide_which_weights_there_are(tiny: Path, cache: Path) -> None:
    def stays(**options: str) -> bool:
        return any(isinstance(module, Quantised) for module in load_model(tiny, **options)[0].modules())

    assert stays()
    assert stays(weights="file", dtype="float32")
    for options in (
        {"dtype": "float32"},
        {"weights": "bfloat16"},
        {"weights": "float32", "dtype": "float32"},
    ):
        assert not stays(**options)
    assert load_model(tiny, weights="bfloat16")[0].dtype == torch.bfloat16
    for wrong in ({"weights": "int3"}, {"weights": "float32", "dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="weights: got"):
            load_model(tiny, **wrong)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_files_of_floats_are_read_as_before(name: str, file: Path, cache: Path) -> None:
    original = random_model(CASES[name])
    write_model(file, CASES[name], original)
    model, _ = load_model(file, "float32", weights="file")
    torch.testing.assert_close(logits(model), logits(original), atol=2e-3, rtol=0)
    (copy,) = cache.iterdir()
    assert copy.name.endswith("-v3")


def truncated(copy: Path) -> None:
    whole = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(whole[: len(whole) // 2])


def changed(copy: Path) -> None:
    with (copy / "weights.safetensors").open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes(100))


def without_tensors(copy: Path) -> None:
    (copy / "weights.safetensors").unlink()


def without_modules(copy: Path) -> None:
    (copy / "modules.json").write_text("{")


def of_another_form(copy: Path) -> None:
    kept = json.loads((copy / "modules.json").read_text())
    for part in kept.values():
        part["inputs"] *= 2
    (copy / "modules.json").write_text(json.dumps(kept))


def of_fewer_layers(copy: Path) -> None:
    kept = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(kept | {"num_hidden_layers": 2}))


def without_tokenizer_config(copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()


def without_facts(copy: Path) -> None:
    (copy / "files.json").unlink()


DAMAGES = [changed, of_fewer_layers, without_tokenizer_config, without_facts]


@pytest.mark.parametrize("damage", [*DAMAGES, truncated, without_tensors, without_modules, of_another_form])
def test_a_damaged_copy_is_made_anew(tiny: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    reference = logits(load_model(tiny)[0])
    (copy,) = cache.iterdir()
    damage(copy)
    assert load_config(tiny).num_hidden_layers == KEYS["llama.block_count"]
    stages: list[str] = []
    assert torch.equal(reference, logits(load_model(tiny, on_progress=stages.append)[0]))
    assert stages == ["mapping the weights", "packing tiny.gguf (only once)"]
    assert list(cache.iterdir()) == [copy]


def float_tensors(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same of a dequantised copy, whose file of tensors has another name."""

    def damage(copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "weights.safetensors")
        change(copy)
        (copy / "weights.safetensors").rename(copy / "model.safetensors")

    return damage


def without_a_tensor(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage", [*DAMAGES[1:], without_a_tensor, float_tensors(changed), float_tensors(truncated)]
)
def test_a_damaged_copy_of_floats_is_made_anew(
    tiny: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    """transformers would fill a tensor that is not there with random numbers."""
    reference = logits(load_model(tiny, "float32")[0])
    (copy,) = cache.iterdir()
    damage(copy)
    assert torch.equal(reference, logits(load_model(tiny, "float32")[0]))
    assert list(cache.iterdir()) == [copy]


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_damaged_copy_that_cannot_be_removed(
    dtype: str, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = logits(load_model(tiny, dtype)[0])
    (copy,) = cache.iterdir()
    (copy / "config.json").write_text("{")
    for module in (quantised, gguf_files):
        monkeypatch.setattr(module, "discard", lambda folder: None)
    with pytest.warns(UserWarning, match="cannot keep a converted copy"):
        model, _ = load_model(tiny, dtype)
    assert torch.equal(logits(model), reference)


def test_a_copy_behind_a_link(tiny: Path, cache: Path, tmp_path: Path) -> None:
    """The damaged one stays where it is; the link gives way to a whole copy."""
    reference = logits(load_model(tiny)[0])
    (copy,) = cache.iterdir()
    elsewhere = copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(elsewhere)
    (elsewhere / "modules.json").write_text("{")
    assert torch.equal(logits(load_model(tiny)[0]), reference)
    assert elsewhere.is_dir()
    assert not copy.is_symlink()


@pytest.mark.parametrize("weights", ["file", "float32"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_file_that_changes_while_it_is_read(
    weights: str, kept: bool, tiny: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name of the old file's copy would lie the weights of the new one."""
    before = tiny.read_bytes()
    write_quantised(tmp_path / "new.gguf", "Q4_0", seed=1)
    read, readings = Header.read, []

    def replaced(file: Path) -> Header:
        readings.append(file)
        if len(readings) == 2:  # after the header was looked at, and the digest was made
            (tmp_path / "new.gguf").replace(file)
        return read(file)

    if not kept:
        (tmp_path / "file").write_text("not a folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Header, "read", replaced)
        with pytest.raises(ModelLoadError, match=r"tiny\.gguf changed while it was read"):
            load_model(tiny, weights=weights)
    assert files(cache) == set()
    assert tiny.read_bytes() != before


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ("file", PreTrainedTokenizerFast),
        ("float32", PreTrainedTokenizerFast),
        ("float32", PreTrainedModel),
    ],
)
def test_a_full_disk(
    weights: str, kind: type, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers in Rust raise exceptions of their own."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(kind, "save_pretrained", full)
    with pytest.warns(UserWarning, match=r"cannot keep a converted copy .*No space left"):
        model, _ = load_model(tiny, weights=weights)
    assert logits(model).isfinite().all()
    assert files(cache) == set()


def test_a_conversion_that_is_stopped_leaves_nothing(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(file: Path, parts: list[object]) -> None:
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(quantised, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        load_model(tiny)
    assert files(cache) == set()


def test_without_a_cache_folder_the_weights_are_in_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(load_model(tiny)[0])
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep a converted copy"):
        model, _ = load_model(tiny)
    assert torch.equal(logits(model), expected)


def test_another_file_of_the_same_name_is_converted_again(tiny: Path, cache: Path) -> None:
    first, _ = load_model(tiny)
    write_quantised(tiny, "Q4_0", seed=1)
    second, _ = load_model(tiny)
    assert not torch.equal(logits(first), logits(second))
    assert len(list(cache.iterdir())) == 2


def test_the_digest_of_a_file_at_rest_is_kept(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(tiny)
    kept = cache.parent / "digests"
    assert not kept.exists()  # it was written just now, and may change in the same tick of the clock
    monkeypatch.setattr(copies, "_SETTLED_SECONDS", -1.0)
    load_model(tiny)
    (digest,) = kept.iterdir()
    (copy,) = cache.iterdir()
    assert digest.read_text() in copy.name
    monkeypatch.setattr(copies.hashlib, "blake2b", _only_of_facts(copies.hashlib.blake2b))
    load_model(tiny)
    monkeypatch.undo()
    digest.write_text("no digest")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    load_model(tiny)
    assert list(cache.iterdir()) == [copy]


def _only_of_facts(blake2b: Callable[..., object]) -> Callable[..., object]:
    def made(*data: bytes, digest_size: int) -> object:
        assert data, "the file was read again"
        return blake2b(*data, digest_size=digest_size)

    return made


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ2_XXS", "IQ3_S", "TQ1_0"])
def test_kinds_that_do_not_stay_quantised_are_refused_by_name(kind: str, file: Path, cache: Path) -> None:
    each, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = np.zeros((INNER, HIDDEN // each * size), np.uint8)
    write_quantised(file, "Q4_0", tensors={"blk.1.ffn_up.weight": (blocks, kind)})
    with pytest.raises(ModelLoadError, match=rf"blk\.1\.ffn_up\.weight in {kind}, .*weights='bfloat16'"):
        load_model(file)
    assert files(cache) == set()
    model, _ = load_model(file, weights="float32")
    assert not model.model.layers[1].mlp.up_proj.weight.any()


@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", "token_embd.weight", "blk.1.attn_norm.weight"])
def test_values_that_are_not_finite(name: str, file: Path, cache: Path) -> None:
    shape = {"blk.0.ffn_down.weight": (HIDDEN, INNER), "token_embd.weight": (len(TOKENS), HIDDEN)}.get(name)
    values = random_tensor("Q8_0", shape, 0) if shape else np.full(HIDDEN, np.nan, np.float32)
    if shape:
        values[3, 34:36] = np.float16([np.inf]).view(np.uint8)
    write_quantised(file, "Q4_0", tensors={name: (values, "Q8_0" if shape else "F32")})
    with pytest.raises(ModelLoadError, match=rf"damaged: {name} holds values that are not finite"):
        load_model(file)
    assert files(cache) == set()


def test_a_tensor_of_another_shape(file: Path, cache: Path) -> None:
    wrong = random_tensor("Q4_0", (INNER - 1, HIDDEN), 0)
    write_quantised(file, "Q4_0", tensors={"blk.0.ffn_up.weight": (wrong, "Q4_0")})
    message = r"up_proj\.weight got the shape \(511, 256\), expected \(512, 256\)"
    with pytest.raises(ModelLoadError, match=message):
        load_model(file)
    assert files(cache) == set()


def test_an_architecture_that_lies(file: Path, cache: Path) -> None:
    """Tensors of a Llama under keys of a Qwen3, which has norms of heads."""
    keys = {f"qwen3.{key.partition('.')[2]}": value for key, value in KEYS.items()}
    write_quantised(file, "Q4_0", architecture="qwen3", keys=keys)
    with pytest.raises(ModelLoadError, match="lacks the tensor"):
        load_model(file)


def test_a_model_that_memory_does_not_hold_is_refused_with_the_numbers(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 409600)
    with pytest.raises(ModelLoadError, match=r"takes 0\.00\d* GB of memory .* has 0\.00 GB"):
        load_model(tiny)
    assert files(cache) == set()


def test_a_file_without_quantised_matrices_has_none(file: Path, cache: Path) -> None:
    write_tiny_gguf(file)
    model, _ = load_model(file)
    assert not any(isinstance(module, QuantisedLinear) for module in model.modules())
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)
