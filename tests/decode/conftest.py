"""Where the tests of model files write: a folder of their own. And a decoder whose texts end."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import TreeDecoder


@pytest.fixture
def ending_decoder(model: PreTrainedModel) -> Iterator[TreeDecoder]:
    """With its end of sequence, which constraints are about. No branch may be left."""
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22)
    yield decoder
    gc.collect()  # the traceback of an error that was caught refers to itself
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of converted models, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tts-kernels" / "models"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"
