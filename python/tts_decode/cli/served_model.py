"""The model of `tts-decode serve`, as one process holds it: this one, or a replica's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..decoding.decoder import TreeDecoder
from ..rewards import Scorer, load_reward_model
from ..serve.config import Limits, ServerConfig
from .errors import MIB, UsageError, usage_errors
from .groups import ModelOptions
from .scorers import check_reader
from .session import Session


@dataclass(frozen=True)
class ServedModel:
    """What is served; a replica gets it pickled.

    readers: reward models, as `named_reader` reads them. The rest: as of `ServerConfig`.
    """

    model: ModelOptions
    name: str
    readers: Sequence[tuple[str, str, str]]
    keys: tuple[str, ...]
    limits: Limits
    loopback: bool

    def __call__(self) -> tuple[TreeDecoder, ServerConfig]:
        """Loads it. Raises UsageError for pages that hold too little."""
        with self.model.open(shared=bool(self.readers)) as session:
            scorers = {
                label: _loaded(session, reader, folder, self.model.device)
                for label, reader, folder in self.readers
            }
            decoder = session.decoder()
            config = ServerConfig(self.name, self.keys, scorers, self.limits, self.loopback)
            _check_room(decoder, self.model.kv_mib, *config.least_kv(decoder))
            return decoder, config


def named_reader(text: str) -> tuple[str, str, str]:
    """NAME=READER:FOLDER, in its parts. Raises UsageError."""
    label, equals, source = text.partition("=")
    reader, colon, folder = source.partition(":")
    if not (label and equals and colon and folder):
        raise UsageError(f"--scorer: got {text!r}, expected NAME=READER:FOLDER")
    check_reader(reader)
    return label, reader, folder


def _check_room(decoder: TreeDecoder, kv_mib: int | None, least: int, size: int) -> None:
    """Refuses a pool that holds fewer than `least` tokens. size: of a page, in bytes."""
    if decoder.max_kv_tokens < least:
        got = "too little memory" if kv_mib is None else kv_mib
        raise UsageError(
            f"--kv-mib: got {got}, whose pages hold {decoder.max_kv_tokens} tokens of this model; "
            f"expected at least {-(-size // MIB)}, for {least} tokens"
        )


def _loaded(session: Session, reader: str, folder: str, device: str) -> Scorer:
    with usage_errors():
        scorer: Any = load_reward_model(folder, reader, device=device, kv_bytes=session.kv_bytes)
    return scorer  # type: ignore[no-any-return]
