from collections.abc import Callable, Iterator
from typing import Any

import pytest
from primitives import make
from serving import CHAT_TEMPLATE, Served
from tiny_models import byte_tokenizer
from transformers import PreTrainedModel
from tts_decode import TreeDecoder


def make_chatty(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    """A decoder over bytes that knows a chat template."""
    decoder = TreeDecoder(model, byte_tokenizer(chat_template=CHAT_TEMPLATE), kv_bytes=1 << 24, **options)
    decoder.eos_token_ids = frozenset()
    return decoder


@pytest.fixture
def serve(model: PreTrainedModel, one_thread: None) -> Iterator[Callable[..., Served]]:
    """Starts servers; each must give back all branches and pages by the end of the test."""
    running: list[Served] = []

    def start(decoder: TreeDecoder | None = None, **options: Any) -> Served:
        running.append(Served(decoder or make_chatty(model), **options))
        return running[-1]

    yield start
    for served in running:
        served.assert_empties()
        served.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def alone(model: PreTrainedModel) -> TreeDecoder:
    """The decoder that says what a server has to answer, in process."""
    return make(model)
