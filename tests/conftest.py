import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which transformers may do

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from tts_decode import TreeDecoder
from tts_decode.default_model import default_model_file
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_model
from tts_decode.search import STRATEGIES

sys.path.insert(0, str(Path(__file__).parent))  # for fuzz
sys.path.insert(0, str(Path(__file__).parent / "helpers"))
sys.path.append(str(Path(__file__).parents[1]))  # for benches.gpu; last, so that it hides no installation

from needed import missing
from openai_server import Server
from primitives import make
from tiny_models import tiny_model

settings.register_profile("any machine", deadline=None)  # an example may take long beside other work
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("needs an NVIDIA GPU"))


@pytest.fixture(scope="session", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where kernels for plain pages run: on the GPU where there is one, else in Triton's interpreter."""
    if (request.param == "cuda") != torch.cuda.is_available():
        pytest.skip("needs a GPU" if request.param == "cuda" else "the kernels run on the GPU here")
    pytest.importorskip("triton")
    return torch.device("cuda" if request.param == "cuda" else "cpu")


@pytest.fixture(autouse=True)
def listed_strategies() -> Iterator[None]:
    """A strategy that a test defines is not listed in other tests, whichever of them run in this process."""
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads, above all where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def decoder(model: PreTrainedModel) -> Iterator[TreeDecoder]:
    """A decoder whose tree must be empty again at the end of the test."""
    decoder = make(model)
    yield decoder
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)


@pytest.fixture(scope="session")
def real_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model in float32 and its tokenizer; a machine's first run converts it, in about 20 s."""
    try:
        default_model_file()
    except ModelLoadError as error:
        missing(str(error))
    return load_model(dtype="float32")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of OpenAI's API, whose answers the test decides."""
    server = Server()
    yield server
    server.close()
