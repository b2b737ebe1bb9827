"""What a request asks of the decoder, checked against the limits, and the pieces of its answer."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.constraints.grammars import JSONSchema
from ..core.params import SamplingParams
from .config import Limits
from .errors import APIError, at_most, given, invalid, unsupported
from .prompts import Prompt
from .protocol import ChatBody, CompletionBody, Generating, ResponseFormat

_DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API


@dataclass(frozen=True)
class Facts:
    """What a request is checked against besides the limits.

    Attributes:
        vocabulary: tokens of the model. kv_tokens: capacity of the KV pages. page: tokens of each.
        positions: of the model's longest text; None: any.
    """

    vocabulary: int
    kv_tokens: int
    page: int
    positions: int | None = None

    def room(self, prompt: int, n: int) -> int:
        """Returns the tokens that each of n choices after this prompt can have, if nothing else is held."""
        full, rest = divmod(prompt, self.page)  # a partly filled page is copied for each choice
        return (self.kv_tokens // self.page - full) // n * self.page - rest

    def held(self, prompt: int, n: int, tokens: int) -> int:
        """Returns the tokens of the pages that a prompt and n choices of `tokens` tokens hold.

        The last token of a choice is sampled and has no KV; without an earlier one the choices share
        everything.
        """
        full, rest = divmod(prompt, self.page)
        own = n * -(-(rest + tokens - 1) // self.page) if tokens > 1 else rest > 0
        return (full + own) * self.page


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a request asks for.

    Attributes:
        prompts: each of which gets its own choices. sampling: the first prompt has its seed; each further
            prompt has the next number.
        n: choices per prompt. best_of: how many are sampled for them.
        include_stop: whether a text ends with its stop string. echo: whether it begins with its prompt.
        logprobs: number of alternatives listed with each token's log-probability; None: nothing is listed.
        token_ids: whether token ids are listed, the prompt's for each choice.
        stream: whether pieces are sent as they come.
        generates: whether anything is sampled.
        kv_tokens: of each prompt and its choices in KV pages, including partly filled ones, if each choice
            reaches its maximum length.
    """

    prompts: list[Prompt]
    sampling: SamplingParams
    n: int = 1
    best_of: int = 1
    include_stop: bool = False
    echo: bool = False
    logprobs: int | None = None
    token_ids: bool = False
    stream: bool = False
    generates: bool = True
    kv_tokens: Sequence[int] = ()

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.best_of


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    text: added by the token; a character belongs to the token that completes it. logprob: nats, None for a
    prompt's first token. top: alternatives as (id, text, log-probability), best first.
    """

    id: int
    text: str
    logprob: float | None
    top: Sequence[tuple[int, str, float]] = ()


@dataclass(frozen=True)
class Piece:
    """A part of one choice; the parts add up to it.

    Attributes:
        tokens: if they are listed. finish_reason: of the last piece. stop_reason: the stop string, or the id
            of the stop token. more: further fields of the answer, or of the chunk.
        echoed: tokens of the prompt, which come before the others; one list for all choices of a prompt.
        prompt_ids: of the prompt, if ids are listed; in a choice's first piece.
    """

    choice: int
    text: str
    tokens: Sequence[Token] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    echoed: Sequence[Token] = ()
    prompt_ids: Sequence[int] = ()


@dataclass
class Usage:
    """Tokens: of the prompts; resident ones among these; sampled."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def length_field(body: CompletionBody | ChatBody) -> str:
    """Returns the name of the field by which a request limits the length of its choices."""
    newer = isinstance(body, ChatBody) and body.max_completion_tokens is not None
    return "max_completion_tokens" if newer else "max_tokens"


def sequences_of(body: CompletionBody | ChatBody, limits: Limits) -> int:
    """Returns how many sequences are sampled concurrently, known before the prompts are read."""
    n = body.n or 1
    if isinstance(body, ChatBody):
        at_most("n", n, limits.choices)
        return n
    at_most("prompt", len(body.prompt), limits.prompts, "prompts")
    best_of = body.best_of or n
    at_most("best_of" if body.best_of else "n", best_of, limits.choices)
    if best_of < n:
        raise invalid("best_of", f"got {best_of}, expected at least n = {n}")
    return len(body.prompt) * best_of


def completion_job(body: CompletionBody, prompts: list[Prompt], limits: Limits, facts: Facts) -> Job:
    """Returns the job of a body whose `sequences_of` are within the limits."""
    n = body.n or 1
    best_of = body.best_of or n
    if body.stream and best_of > n:
        problem = f"got {best_of} beside stream, expected n = {n}: the best are known at the end"
        raise invalid("best_of", problem)
    at_most("logprobs", body.logprobs or 0, limits.logprobs)
    tokens = min(_DEFAULT_TOKENS, limits.max_tokens) if body.max_tokens is None else body.max_tokens
    if not tokens and not body.echo:
        raise invalid("max_tokens", "got 0, expected at least 1, or echo")
    job = Job(
        prompts=prompts,
        sampling=_sampling(body, max(tokens, 1), body.logprobs or 0, limits, facts.vocabulary),
        n=n,
        best_of=best_of,
        include_stop=_includes_stop(body),
        echo=bool(body.echo),
        logprobs=body.logprobs,
        token_ids=bool(body.return_token_ids),
        stream=bool(body.stream),
        generates=tokens > 0,
    )
    if body.max_tokens is None:
        job = _cut(job, limits)
    return _within(job, length_field(body), limits, facts)


def chat_job(body: ChatBody, prompt: Prompt, limits: Limits, facts: Facts) -> Job:
    """Returns the job of a body whose `sequences_of` are within the limits."""
    n = body.n or 1
    asked = {t for t in (body.max_tokens, body.max_completion_tokens) if t is not None}
    if len(asked) == 2:
        problem = (
            f"got {given(body.max_completion_tokens)} beside max_tokens = {given(body.max_tokens)}, "
            "expected one of them"
        )
        raise invalid("max_completion_tokens", problem)
    if 0 in asked:
        raise invalid(length_field(body), "got 0, expected at least 1")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "got a number without logprobs, expected logprobs = true beside it")
    at_most("top_logprobs", body.top_logprobs or 0, limits.logprobs)
    top = (body.top_logprobs or 0) if body.logprobs else None
    room = max(1, facts.room(len(prompt.ids), n))
    tokens = min(asked, default=min(limits.max_tokens, room))
    job = Job(
        prompts=[prompt],
        sampling=_sampling(body, tokens, top or 0, limits, facts.vocabulary),
        n=n,
        best_of=n,
        include_stop=_includes_stop(body),
        logprobs=top,
        token_ids=bool(body.return_token_ids),
        stream=bool(body.stream),
    )
    if not asked:
        job = _cut(job, limits)
    return _within(job, length_field(body), limits, facts)


def _includes_stop(body: Generating) -> bool:
    """Reads the field by either of its names."""
    values = {v for v in (body.include_stop_str_in_output, body.no_stop_trim) if v is not None}
    if len(values) == 2:
        problem = (
            f"got {given(body.no_stop_trim)} beside another include_stop_str_in_output, expected the same"
        )
        raise invalid("no_stop_trim", problem)
    return values == {True}


def _cut(job: Job, limits: Limits) -> Job:
    """Shortens a job whose length is not the request's own to its limits, at least one token per choice."""
    prompts, each = _entries(job)
    tokens = min(job.sampling.max_tokens, limits.request_tokens // job.sequences)
    if each:
        tokens = min(tokens, (limits.answer_entries - prompts) // (job.sequences * each))
    tokens = max(1, tokens)
    return replace(job, sampling=replace(job.sampling, max_tokens=tokens, max_step_tokens=tokens))


def _entries(job: Job) -> tuple[int, int]:
    """Returns the tokens and alternatives that the answer lists: for all prompts, and per sampled token."""
    alternatives = 0 if job.logprobs is None else 1 + job.logprobs
    prompts = job.n * sum(len(prompt.ids) for prompt in job.prompts)
    return prompts * (job.token_ids + job.echo * alternatives), job.token_ids + alternatives


def _within(job: Job, field: str, limits: Limits, facts: Facts) -> Job:
    """Returns the job if its numbers multiply to no more than allowed.

    field: by which a request limits the length of its choices.
    """
    positions = facts.positions
    tokens = job.sampling.max_tokens if job.generates else 0
    sizes = [len(prompt.ids) for prompt in job.prompts]
    rooms = [tokens if positions is None else min(tokens, positions - size) for size in sizes]
    sampled = job.best_of * sum(rooms)
    if sampled > limits.request_tokens:
        problem = f"got choices of {sampled} tokens in all, expected at most {limits.request_tokens}"
        raise invalid(field, f"{problem}; ask for fewer choices, or shorter ones")
    held = [facts.held(size, job.best_of, room) for size, room in zip(sizes, rooms, strict=True)]
    job = replace(job, kv_tokens=[each + job.echo * facts.page for each in held])  # an echo has a copy
    prompts, each = _entries(job)
    entries = prompts + sampled * each
    if entries > limits.answer_entries:
        name = "return_token_ids" if job.logprobs is None else "logprobs"
        problem = f"got {entries} tokens and alternatives to list, expected at most {limits.answer_entries}"
        raise invalid(name, f"{problem}; ask for fewer choices, tokens or alternatives")
    return job


def _sampling(
    body: CompletionBody | ChatBody, max_tokens: int, top: int, limits: Limits, vocabulary: int
) -> SamplingParams:
    at_most(length_field(body), max_tokens, limits.max_tokens)
    at_most("stop", len(body.stop), limits.stops, "strings")
    for stop in body.stop:
        at_most("stop", len(stop), limits.stop_characters, "characters")
    stop_ids = tuple(body.stop_token_ids or ())
    at_most("stop_token_ids", len(stop_ids), limits.stops, "tokens")
    for token in stop_ids:
        _check_token("stop_token_ids", token, vocabulary)
    penalties = {p for p in (body.repetition_penalty, body.repeat_penalty) if p is not None}
    if len(penalties) == 2:
        raise invalid("repeat_penalty", "got another value than repetition_penalty, expected one of them")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "got options without stream, expected stream = true beside them")
    settings: dict[str, Any] = dict(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=min(max(body.top_k or 0, 0), vocabulary),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=min(penalties, default=1.0),
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        max_tokens=max_tokens,
        max_step_tokens=max_tokens,
        stop=body.stop,
        stop_token_ids=stop_ids,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_bias(body.logit_bias or {}, limits, vocabulary),
        top_logprobs=top,
        constraint=_constraint(body.response_format, limits),
    )
    try:
        return SamplingParams(**settings)
    except ValueError as error:
        # Errors raised there name a parameter; the client knows it by the name of its field.
        name = str(error).partition(":")[0].partition("[")[0]
        fields = dict.fromkeys(("max_tokens", "max_step_tokens"), length_field(body))
        if body.repetition_penalty is None:
            fields["repetition_penalty"] = "repeat_penalty"
        problem = "got a value that cannot be sampled with"
        raise invalid(fields.get(name, name) if name in settings else "sampling", problem) from None


def _constraint(form: ResponseFormat | None, limits: Limits) -> JSONSchema | None:
    name = "response_format"
    if form is not None and form.type != "json_schema" and form.json_schema is not None:
        raise invalid(
            f"{name}.json_schema", f"got a schema beside type = {form.type!r}, expected json_schema"
        )
    if form is None or form.type == "text":
        return None
    if importlib.util.find_spec("llguidance") is None:
        raise unsupported(name, "the server lacks the package llguidance (tts-kernels[grammar])")
    if form.type == "json_object":
        return JSONSchema({"type": "object"})
    if form.json_schema is None:
        raise APIError(
            400, f"{name}.json_schema: missing", f"{name}.json_schema", "missing_required_parameter"
        )
    try:
        constraint = JSONSchema(form.json_schema.schema_)
    except (TypeError, ValueError):
        problem = f"got {given(form.json_schema.schema_)}, expected a JSON schema"
        raise invalid(f"{name}.json_schema.schema", problem) from None
    at_most(f"{name}.json_schema.schema", len(str(constraint.schema).encode()), limits.schema_bytes, "bytes")
    return constraint


def _bias(asked: dict[str, float], limits: Limits, vocabulary: int) -> dict[int, float]:
    at_most("logit_bias", len(asked), limits.bias_tokens, "tokens")
    bias = {}
    for name, value in asked.items():
        if not name.isascii() or not name.isdigit() or len(name) > 9 or name != str(int(name)):
            raise invalid("logit_bias", f"got the key {given(name)}, expected a token id")
        _check_token("logit_bias", int(name), vocabulary)
        if not -100 <= value <= 100:
            raise invalid("logit_bias", f"got {given(value)} for token {name}, expected -100 to 100")
        bias[int(name)] = value
    return bias


def _check_token(name: str, token: int, vocabulary: int) -> None:
    if not 0 <= token < vocabulary:
        raise invalid(name, f"got token {given(token)}, expected ids from 0 to {vocabulary - 1}")
