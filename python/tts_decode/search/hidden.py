"""Hidden states during a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.interfaces import Decoder


@contextmanager
def hidden_states(decoder: Decoder, wanted: bool = True) -> Iterator[None]:
    """Makes steps carry hidden states meanwhile.

    It uses a counter, because other searches on the decoder may want them too.
    """
    decoder.keep_hidden += wanted
    try:
        yield
    finally:
        decoder.keep_hidden -= wanted
