"""What every test of a kernel leaves behind: the instruction-set level and the threads that it found."""

from collections.abc import Iterator

import pytest
import torch

from tts_kernels import _core


@pytest.fixture(autouse=True)
def _default_level() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    _core.set_cpu_isa(None)
    torch.set_num_threads(threads)
