"""Differences between actors are detected without Ray."""

from __future__ import annotations

import pytest
import torch
from primitives import make
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import TreeDecoder
from tts_decode.cluster.identity import identity_of, weights_checksum

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_same_model_is_the_same() -> None:
    one, other = identity_of(make(tiny_model())), identity_of(make(tiny_model()))
    assert one == other
    assert one.difference(other) is None


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: make(tiny_model(seed=1)), "weights"),
        (lambda: make(tiny_model("qwen3")), "model"),
        (lambda: make(tiny_model(dtype=torch.bfloat16)), "model"),
        (lambda: make(tiny_model(), kv_dtype=torch.int8), "kv-dtype"),
        (lambda: TreeDecoder(tiny_model(), byte_tokenizer(chat_template="{{ messages }}")), "tokenizer"),
    ],
    ids=["weights", "family", "dtype", "kv_dtype", "template"],
)
def test_what_differs_is_named(other: object, name: str) -> None:
    difference = identity_of(make(tiny_model())).difference(identity_of(other()))  # type: ignore[operator]
    assert difference is not None
    assert difference.startswith(f"{name} ")
    assert ", there " in difference


def test_large_tensors_are_sampled_over_their_whole_length() -> None:
    model = torch.nn.Linear(1 << 12, 1 << 8)  # 4 MiB
    before = weights_checksum(model)
    for row in (0, 100, 252):
        with torch.no_grad():
            model.weight[row : row + 4] += 1  # of 16 KiB each
        after = weights_checksum(model)
        assert after != before
        before = after


def test_packed_weights_stay_packed() -> None:
    decoder = make(tiny_model())
    assert decoder.runtime.engine.packed is not None
    packed = [type(module) for module in decoder.model.modules()]
    identity_of(decoder)
    assert [type(module) for module in decoder.model.modules()] == packed
