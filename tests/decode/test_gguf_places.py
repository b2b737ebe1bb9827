"""GGUF files whose tensors do not lie where their header says, or of a kind that nobody knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_quantised import write_quantised
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_config, load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(file: Path, cache: Path) -> Path:
    write_quantised(file, "Q4_0")
    return file


@pytest.mark.parametrize("part", [0.3, 0.7, 0.999])
def test_a_file_that_was_cut_short(part: float, tiny: Path, cache: Path) -> None:
    whole = tiny.read_bytes()
    tiny.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf is damaged: \S+ ends at byte"):
        load_model(tiny)
    assert not list(cache.rglob("*"))


def place_of(whole: bytes, name: str) -> int:
    """Where the header of a file has the kind of a tensor, a matrix; its offset lies behind."""
    return whole.index(name.encode()) + len(name) + 4 + 2 * 8


@pytest.mark.parametrize("load", [load_config, load_model])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own, other, size: other, r"attn_v\.weight begins at byte \d+ of the weights, where .* lies"),
        (lambda own, other, size: own + 32, "begins at byte .* where .* lies"),
        (lambda own, other, size: own + 1, "expected a multiple of 32"),
        (lambda own, other, size: size, r"attn_k\.weight ends at byte \d+ of the weights, of which the file"),
        (lambda own, other, size: 2**64 - 32, "ends at byte"),
    ],
)
def test_tensors_that_do_not_lie_where_they_can(
    change: Callable[[int, int, int], int],
    message: str,
    load: Callable[[Path], object],
    tiny: Path,
    cache: Path,
) -> None:
    """Two in one place would be two right weights in llama.cpp's shapes, and one wrong model."""
    whole = bytearray(tiny.read_bytes())
    key, value = (place_of(whole, f"blk.1.attn_{part}.weight") + 4 for part in "kv")
    own, other = (int.from_bytes(whole[at : at + 8], "little") for at in (key, value))
    whole[key : key + 8] = change(own, other, len(whole) // 32 * 32).to_bytes(8, "little")
    tiny.write_bytes(whole)
    with pytest.raises(ModelLoadError, match=rf"tiny\.gguf is damaged: .*{message}.*; fetch it again"):
        load(tiny)
    assert not list(cache.rglob("*"))


def test_a_kind_that_nobody_knows(tiny: Path, cache: Path) -> None:
    whole = bytearray(tiny.read_bytes())
    whole[place_of(whole, "blk.1.attn_k.weight")] = 250
    tiny.write_bytes(whole)
    with pytest.raises(ModelLoadError, match=r"blk\.1\.attn_k\.weight in numbers of the kind 250"):
        load_model(tiny)
