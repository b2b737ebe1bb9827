"""What a server serves, and the limits of what a client can ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ..rewards.scorer import Scorer


@dataclass(frozen=True)
class Limits:
    """What a client sends is held against these; the answer to more is an error.

    Attributes:
        body_bytes: of a request. bodies_bytes: that came of all requests which are not taken or refused yet;
            one alone has room. Where they become too many, the client that has the most gives up a body.
        prompts: in one request. prompt_tokens: of each; None: the model's positions.
        choices: `n` and `best_of`, and what a search may hold side by side.
        max_tokens: of one choice. search_tokens: sampled by one search.
        stops: stop strings of a request. stop_characters: of each.
        logprobs: alternatives of a token. bias_tokens: entries of `logit_bias`.
        schema_bytes: of a JSON schema.
        request_tokens: that all choices of one request may come to, those of `best_of` too.
        answer_entries: tokens and alternatives that one answer lists, echoed ones counted for each choice.
        search_products: of a search's counts, such as n and num_comparisons, multiplied.
        search_branches: that a search holds at a time, those of its further prompts too.
        sequences: choices that are generated at a time, of all requests; a search counts as its `n`.
        client_sequences: of them, those of one API key, or without keys of one address; None: all.
        request_seconds: for an answer as a whole.
        idle_seconds: for a client to send its head or a part of its body, and to take a part of its answer.
        retained: finished texts that are kept for requests that go on with them. Where they become too many,
            the API key that has the most loses one.
        retained_tokens: of them all, prompts counted each time.
        trees: of searches, kept for their links. tree_bytes: of them all.
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
            least = 0 if limit.name in ("retained", "retained_tokens", "trees", "tree_bytes") else 1e-3
            if value is not None and (isinstance(value, bool) or not value >= least):
                expected = "a positive number" if least else "a number, 0 or more"
                raise ValueError(f"{limit.name}: got {value!r}, expected {expected}")


@dataclass(frozen=True)
class ServerConfig:
    """Attributes:
    model: the name under which the model is served.
    keys: API keys, of which a request has to carry one; none: every request is served.
    scorers: what searches may name beside the built-in scorers.
    limits: of what a client can ask.
    loopback: whether the server listens on this machine only. Without keys, requests that name another host
        are then refused: pages in a browser reach the server under a name of their own.
    """

    model: str
    keys: tuple[str, ...] = ()
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    loopback: bool = True
