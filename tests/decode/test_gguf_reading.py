"""How GGUF files are read: what is wrong with a header is told before all of the file is read, a file that is
cut short meanwhile is an error, and a user may have no home folder."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_gguf
from tiny_quantised import KEYS, write_quantised
from tts_decode.cli.info import collect
from tts_decode.errors import ModelLoadError
from tts_decode.model import memory
from tts_decode.model.gguf import cache as copies
from tts_decode.model.gguf import metadata
from tts_decode.model.gguf.blocks import FileTensor
from tts_decode.model.gguf.header import Header
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a digest of a whole file is begun."""
    blake2b = copies.hashlib.blake2b

    def made(*data: bytes, digest_size: int) -> object:
        assert data, "all of the file was read"
        return blake2b(*data, digest_size=digest_size)

    monkeypatch.setattr(copies.hashlib, "blake2b", made)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("weights", ["file", "float32"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"general.architecture": "mamba"}, r"general\.architecture: got 'mamba'"),
        ({"tokenizer.ggml.model": "t5"}, r"tokenizer\.ggml\.model: got 't5'"),
        ({"tokenizer.chat_template": 5}, r"chat_template: got 5"),
        ({"llama.block_count": 4}, r"lacks the tensor blk\.3"),
        ({"llama.feed_forward_length": 500}, "the shape"),
    ],
)
def test_a_header_is_refused_before_the_file_is_read(
    changed: dict[str, object], message: str, weights: str, file: Path, cache: Path
) -> None:
    keys = dict(changed)
    architecture = str(keys.pop("general.architecture", "llama"))
    write_quantised(file, "Q4_0", architecture=architecture, keys=keys)
    with pytest.raises(ModelLoadError, match=message):
        load_model(file, weights=weights)
    assert not cache.parent.exists()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("weights", ["file", "float32"])
def test_a_model_beyond_memory_is_refused_before_the_file_is_read(
    weights: str, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_quantised(file, "Q4_0")
    monkeypatch.setattr(memory, "memory_bytes", lambda: 409600)
    with pytest.raises(ModelLoadError, match="GB of memory for its weights"):
        load_model(file, weights=weights)


@pytest.mark.usefixtures("unread")
def test_the_config_needs_the_header_alone(file: Path, cache: Path) -> None:
    write_quantised(file, "Q4_0")
    assert load_config(file).num_hidden_layers == KEYS["llama.block_count"]
    assert not cache.parent.exists()


def within_weights(file: Path) -> int:
    return file.stat().st_size // 2


def behind_the_header(file: Path) -> int:
    return Header.read(file).begin


@pytest.mark.parametrize("weights", ["file", "float32"])
@pytest.mark.parametrize("length", [within_weights, behind_the_header])
def test_a_file_that_is_cut_short_while_it_is_read(
    length: Callable[[Path], int], weights: str, file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of it would end the process: the system raises SIGBUS."""
    write_quantised(file, "Q4_0")
    end, blocks = length(file), FileTensor.blocks

    def cut(tensor: FileTensor) -> np.ndarray:
        os.truncate(file, end)
        return blocks(tensor)

    monkeypatch.setattr(FileTensor, "blocks", cut)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf ends within .*cut short while it was read"):
        load_model(file, weights=weights)
    assert not list(cache.glob("*"))


def test_a_header_that_is_cut_short_while_it_is_read(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(file)
    monkeypatch.setattr(metadata, "_BLOCK", 512)
    length = metadata.os.fstat

    def cut(descriptor: int) -> os.stat_result:
        found = length(descriptor)
        os.truncate(file, 700)
        return found

    monkeypatch.setattr(metadata.os, "fstat", cut)
    with pytest.raises(ModelLoadError, match=r"damaged: .* ends behind the end of the file"):
        load_config(file)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container that runs under a number which no user has."""

    def nobody(number: int) -> object:
        raise KeyError(number)

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantised(file, "Q4_0")
    for weights in ("file", "float32"):
        with pytest.raises(ModelLoadError, match="no home folder; set XDG_CACHE_HOME, or HOME"):
            load_model(file, weights=weights)
    assert load_config(file).num_hidden_layers == KEYS["llama.block_count"]
    assert collect()["model_cache"] == "none: set XDG_CACHE_HOME, or HOME"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_model(file)
    assert collect()["model_cache"] == str(tmp_path / "cache" / "tts-kernels" / "models")
