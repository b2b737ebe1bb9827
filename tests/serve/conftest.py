from collections.abc import Callable, Iterator
from typing import Any

import pytest
from primitives import make
from serving import Served, make_chatty
from transformers import PreTrainedModel
from tts_decode import TreeDecoder


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
