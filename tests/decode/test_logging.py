"""The library's log messages; it is silent unless someone listens."""

from __future__ import annotations

import logging

import pytest
import torch
import tts_decode
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import TreeDecoder


def test_the_path_and_changed_weights_are_told(caplog: pytest.LogCaptureFixture) -> None:
    handlers = logging.getLogger(tts_decode.__name__).handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]
    model = tiny_model()
    with caplog.at_level(logging.INFO, logger="tts_decode"):
        for pack_weights, path in ((True, "packed"), (False, "general")):
            decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 22, pack_weights=pack_weights)
            assert f": {path} path, " in caplog.records.pop().getMessage()
        assert decoder.weights_epoch == decoder.weights_epoch
        assert not caplog.records
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2)
        _ = decoder.weights_epoch
        (record,) = caplog.records
    assert record.getMessage().startswith("the model's weights changed")
    assert record.name.startswith("tts_decode.")
