from collections.abc import Iterator
from typing import Any

import pytest
from serving import Served
from tts_decode import TreeDecoder


@pytest.fixture
def real(real_model: Any, one_thread: None) -> TreeDecoder:
    """A decoder of the default model in float32."""
    return TreeDecoder(*real_model, kv_bytes=1 << 28, check=False)


@pytest.fixture
def served(real: TreeDecoder) -> Iterator[Served]:
    """A server of it, which must give back all pages."""
    served = Served(real)
    yield served
    served.assert_empties()
    served.close()
