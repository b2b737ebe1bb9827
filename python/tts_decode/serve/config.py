"""What a server serves, and the limits of what a client may request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from tts_kernels.checks import instance, integer, is_integer, is_real, shown

from ..decoding.decoder import TreeDecoder
from ..rewards.scorer import Scorer
from .keys import check_keys

_DAY = 86400.0  # seconds
_MANY = 1 << 20  # choices, branches, texts: far more than one machine decodes concurrently
_TOKENS = 1 << 30
_BYTES = 1 << 40
# Ranges of limits; all others range from 1 to _MANY.
_RANGES: dict[str, tuple[float, float]] = {
    "body_bytes": (1, 1 << 30),
    "bodies_bytes": (1, _BYTES),
    **dict.fromkeys(("prompt_tokens", "max_tokens", "search_tokens", "request_tokens"), (1, _TOKENS)),
    **dict.fromkeys(("answer_entries", "search_products"), (1, _TOKENS)),
    "schema_bytes": (1, 1 << 30),
    "request_seconds": (1e-3, 30 * _DAY),
    "idle_seconds": (1e-3, _DAY),
    **dict.fromkeys(("retained", "trees"), (0, _MANY)),
    "retained_tokens": (0, _TOKENS),
    "tree_bytes": (0, _BYTES),
}


@dataclass(frozen=True)
class Limits:
    """Limits on what a client sends; more is answered with an error.

    Raises ValueError, naming the limit, for one that is out of its range. Seconds may be fractions.

    Attributes:
        body_bytes: of a request.
        bodies_bytes: received for all requests that are not accepted or refused yet; a single one always has
            room. If they become too many, the client that has the most gives up a body.
        prompts: in one request.
        prompt_tokens: of each; None: the model's positions.
        choices: `n` and `best_of`, and the concurrent branches of a search.
        max_tokens: of one choice.
        search_tokens: sampled by one search.
        stops: stop strings of a request.
        stop_characters: of each.
        logprobs: alternatives of a token.
        bias_tokens: entries of `logit_bias`.
        schema_bytes: of a JSON schema.
        request_tokens: that all choices of one request may reach in total, including those of `best_of`.
        answer_entries: tokens and alternatives that one answer lists; echoed ones count for each choice.
        search_products: of a search's counts, such as n and num_comparisons, multiplied.
        search_branches: that a search holds at a time, including those of its further prompts.
        sequences: choices generated at a time, over all requests; a search counts as its `n`.
        client_sequences: of these, those of one API key, or without keys of one address, and no more than
            `sequences`; None: all.
        request_seconds: for a whole answer.
        idle_seconds: for a client to send its head or a part of its body, and to take a part of its answer.
        retained: finished texts kept for requests that continue them. If they become too many, the API key
            that has the most loses one.
        retained_tokens: of them all; prompts count each time.
        trees: of searches, kept for their links.
        tree_bytes: of them all.
    """

    body_bytes: int = 4 << 20
    bodies_bytes: int = 64 << 20
    prompts: int = 64
    prompt_tokens: int | None = None
    choices: int = 128
    max_tokens: int = 8192
    search_tokens: int = 1 << 17
    stops: int = 16
    stop_characters: int = 256
    logprobs: int = 20
    bias_tokens: int = 1024
    schema_bytes: int = 1 << 16
    request_tokens: int = 1 << 19
    answer_entries: int = 1 << 20
    search_products: int = 1 << 12
    search_branches: int = 512
    sequences: int = 256
    client_sequences: int | None = None
    request_seconds: float = 600.0
    idle_seconds: float = 30.0
    retained: int = 256
    retained_tokens: int = 1 << 20
    trees: int = 64
    tree_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is None and limit.default is None:
                continue
            least, most = _RANGES.get(limit.name, (1, _MANY))
            fraction = limit.name.endswith("_seconds")
            fits = is_real(value) if fraction else is_integer(value)
            if not (fits and least <= value <= most):
                what = "a number" if fraction else "an integer"
                raise ValueError(f"{limit.name}: got {shown(value)}, expected {what} from {least} to {most}")
        if self.client_sequences is not None and self.client_sequences > self.sequences:
            raise ValueError(
                f"client_sequences: got {self.client_sequences}, expected at most "
                f"{self.sequences}, all of them"
            )


@dataclass(frozen=True)
class ServerConfig:
    """What a server serves.

    Attributes:
        model: the name under which the model is served.
        keys: API keys, of which a request must carry one; none: every request is served.
        scorers: that searches may name besides the built-in ones.
        limits: on what a client may request.
        loopback: whether the server listens on this machine only. Without keys, requests that name another
            host are then refused: pages in a browser reach the server under their own host name.
        least_kv_tokens: minimum capacity of the decoder's pages, or the model's longest text if that is
            shorter: with less, hardly a chat can be served.

    Raises TypeError or ValueError, naming the attribute; errors reveal no character of a key.
    """

    model: str
    keys: tuple[str, ...] = ()
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    loopback: bool = True
    least_kv_tokens: int = 512

    def __post_init__(self) -> None:
        if not instance("model", self.model, str).strip():
            raise ValueError(f"model: got {self.model!r}, expected a name that is not empty")
        check_keys("keys", self.keys)
        if not isinstance(self.scorers, Mapping):
            raise TypeError(f"scorers: got {shown(self.scorers)}, expected a mapping from names to scorers")
        for name, scorer in self.scorers.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"scorers: got the name {shown(name)}, expected a text that is not empty")
            if not callable(scorer):
                raise TypeError(
                    f"scorers: got {shown(scorer)} for {name!r}, expected an async function of branches"
                )
        instance("limits", self.limits, Limits)
        integer("least_kv_tokens", self.least_kv_tokens, 1)

    def least_kv(self, decoder: TreeDecoder) -> tuple[int, int]:
        """Returns the minimum tokens that a decoder's KV pages must hold, and the bytes of these pages."""
        tokens = min(self.least_kv_tokens, decoder.max_positions or self.least_kv_tokens)
        return tokens, -(-tokens // decoder.page_size) * decoder.stats().page_bytes
