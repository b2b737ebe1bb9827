"""Requests that are searches: a listed strategy, with options that are plain values."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.budget import Budget
from ..core.naming import renamed_in_ranges
from ..core.params import SamplingParams
from ..decoding.decoder import TreeDecoder
from ..decoding.retained import OwnTexts
from ..rewards import Scorer, mean_logprob, mean_probability, self_evaluation
from ..rewards.self_evaluation import chat_question
from ..search import STRATEGIES, SearchResult, SearchRun, Strategy
from .bounded_run import BoundedRun, WrongScoresError
from .config import Limits
from .errors import APIError, at_most, given, invalid, shortened
from .generation import Emit
from .job import Job, Piece, Usage
from .protocol import Generating, SearchOptions
from .stops import finish_reason
from .trees import KeptTrees

_log = logging.getLogger(__name__)
PATH = "/v1/tts/trees/"
_PROGRESS_SECONDS = 0.25
_STEP_TOKENS = 64  # at most, if the request does not say
_LONGEST_OPTION = 256  # characters
_LONGEST_NAME = 40  # characters of an option's name that an error repeats

_BUILT_IN: dict[str, Callable[[], Scorer]] = {
    "mean_probability": mean_probability,
    "mean_logprob": mean_logprob,
}


@dataclass(frozen=True)
class Search:
    """A requested search.

    scorer: None: the strategy gets none. scorer_name: as the request named it; None: it did not.
    sequences: that it is admitted as. branches: that it may hold.
    """

    strategy: Strategy[...]
    options: Mapping[str, Any]
    scorer: Scorer | None
    scorer_name: str | None
    sampling: SamplingParams
    budget_tokens: int
    sequences: int
    branches: int


def read_search(
    body: Generating, job: Job, decoder: TreeDecoder, limits: Limits, scorers: Mapping[str, Scorer]
) -> Search:
    """Returns the search of a request.

    Raises APIError, 400, for what cannot be searched; nothing was done.
    """
    asked = body.tts
    assert asked is not None  # checked by the caller
    _refuse_fields(body, job)
    if asked.strategy not in STRATEGIES or STRATEGIES[asked.strategy].family == "own":
        names = [s.name for s in STRATEGIES.values() if s.family != "own"]
        raise invalid("tts.strategy", f"got {given(asked.strategy)}, expected one of {', '.join(names)}")
    strategy = STRATEGIES[asked.strategy]
    options = _options(strategy, asked.model_extra or {}, limits)
    step_tokens = asked.max_step_tokens or min(_STEP_TOKENS, limits.max_tokens)
    at_most("tts.max_step_tokens", step_tokens, limits.max_tokens)
    at_most("tts.step_stop", len(asked.step_stop), limits.stops, "texts")
    for stop in asked.step_stop:
        at_most("tts.step_stop", len(stop), limits.stop_characters, "characters")
    budget = limits.search_tokens if asked.budget_tokens is None else asked.budget_tokens
    at_most("tts.budget_tokens", budget, limits.search_tokens)
    size = options.get(strategy.size, strategy.options.get(strategy.size, 1))
    return Search(
        strategy,
        options,
        _scorer(strategy, asked, decoder, scorers, chat=bool(job.prompts[0].messages)),
        asked.scorer,
        replace(job.sampling, stop=asked.step_stop, max_step_tokens=step_tokens),
        budget,
        max(1, size) if isinstance(size, int) else 1,
        limits.search_branches,
    )


def _refuse_fields(body: Generating, job: Job) -> None:
    fields = {
        "n": job.best_of > 1,
        "prompt": len(job.prompts) > 1,
        "stop": bool(body.stop),
        "stop_token_ids": bool(body.stop_token_ids),
        "echo": job.echo,
        "include_stop_str_in_output": bool(body.include_stop_str_in_output),
        "no_stop_trim": bool(body.no_stop_trim),
        "logprobs": job.logprobs is not None,
        "return_token_ids": job.token_ids,
        "response_format": body.response_format is not None and body.response_format.type != "text",
    }
    for name, present in fields.items():
        if present:
            hint = "; tts.step_stop ends steps" if name == "stop" else ""
            raise invalid(
                name, f"not served beside tts: a search has one answer{hint}", "unsupported_parameter"
            )


def _options(strategy: Strategy[...], asked: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Returns options that are plain values of their types, within the limits.

    Prompt templates remain the server's: a filled-in template can reach what no client should see.
    """
    kinds = strategy.plain_options
    options = {}
    for name, value in asked.items():
        param = f"tts.{shortened(name, _LONGEST_NAME)}"
        if name not in kinds or _is_template(kinds[name][1]):
            known = [other for other, (_, default) in kinds.items() if not _is_template(default)]
            raise invalid(param, f"unknown option of {strategy.name}, expected one of {', '.join(known)}")
        kind = kinds[name][0]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise invalid(param, f"got {given(value)}, expected {_WANTED[kind]}")
        limit = limits.max_tokens if "token" in name or "budget" in name else limits.choices
        if kind is int and abs(value) > limit:
            bound = f"at most {limit}" if value > 0 else f"at least {-limit}"
            raise invalid(param, f"got {given(value)}, expected {bound}")
        if kind is str and len(value) > _LONGEST_OPTION:
            raise invalid(param, f"got {len(value)} characters, expected at most {_LONGEST_OPTION}")
        options[name] = value
    options |= _cut_defaults(strategy, options, limits)
    _check_product(kinds, options, limits)
    for name, parameter in strategy.parameters.items():
        if parameter.default is parameter.empty and name not in ("scorer", *options):
            raise invalid("tts.strategy", f"{strategy.name} needs {name}, which a request cannot give")
    return options


def _cut_defaults(strategy: Strategy[...], asked: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """Returns counts that the request does not name and whose defaults exceed its limits, reduced.

    They are halved until they fit, so that counts that divide each other still do.
    """
    most = min(limits.choices, limits.client_sequences or limits.sequences)
    cut = {}
    for name, (kind, default) in strategy.plain_options.items():
        counts = name == strategy.size or not any(part in name for part in _NO_COUNT)
        if kind is int and counts and name not in asked and isinstance(default, int) and default > most:
            while default > most:
                default //= 2
            cut[name] = default
    return cut


def _check_product(
    kinds: Mapping[str, tuple[type, object]], options: Mapping[str, Any], limits: Limits
) -> None:
    """Limits the branches made by nested counts, whose prompts are in no budget."""
    product, names = 1, []
    for name, (kind, default) in kinds.items():
        if kind is int and not any(part in name for part in _NO_COUNT):
            product *= max(1, abs(int(options.get(name, default) or 1)))
            names.append(name)
    if product > limits.search_products:
        raise invalid(
            "tts", f"got {' x '.join(names)} = {product}, expected at most {limits.search_products}"
        )


_NO_COUNT = ("seed", "max_", "token", "budget")  # in the names of integers that are not counts
_WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def _is_template(default: object) -> bool:
    return isinstance(default, str) and "{" in default


def _scorer(
    strategy: Strategy[...],
    asked: SearchOptions,
    decoder: TreeDecoder,
    scorers: Mapping[str, Scorer],
    *,
    chat: bool,
) -> Scorer | None:
    name = asked.scorer
    if name is None:
        return mean_probability() if strategy.needs_scorer else None
    if "scorer" not in strategy.parameters:
        raise invalid("tts.scorer", f"{strategy.name} takes no scorer")
    if name in scorers:
        return scorers[name]
    if name == "self_evaluation":
        return self_evaluation(chat_question(decoder.tokenizer)) if chat else self_evaluation()
    if name not in _BUILT_IN:
        known = ", ".join((*_BUILT_IN, "self_evaluation", *scorers))
        raise invalid("tts.scorer", f"got {given(name)}, expected one of {known}")
    return _BUILT_IN[name]()


async def run_search(
    decoder: TreeDecoder,
    retained: OwnTexts,
    trees: KeptTrees,
    job: Job,
    search: Search,
    emit: Emit,
    usage: Usage,
) -> None:
    """Emits pieces without text while it runs, then the answer as one.

    No branch is left; the prompt and the answer are retained.
    """
    prompt = job.prompts[0]
    ids = retained.ids(prompt.text, prompt.ids)
    text = retained.known_text(prompt.text, prompt.ids, job.sampling)
    asked = (
        list(prompt.messages) or prompt.text or ids
    )  # with messages, the strategy's further prompts are turns
    root = await decoder.root(asked, search.sampling, Budget(max_tokens=search.budget_tokens), ids=ids)
    usage.prompt, usage.cached = len(ids), root.cached_tokens
    run = BoundedRun(decoder, root, search.branches)
    watch = asyncio.ensure_future(_watch(run, search, emit)) if job.stream else None
    try:
        result = await _searched(run, search)
        best = result.best
        if (pin := run.pin_of(best)) is not None:
            retained.take(pin, [*root.tokens, *best.tokens], root.length, text)
    finally:
        if watch is not None:
            watch.cancel()
        usage.completion = run.generated
        run.release_candidates()
        retained.keep(root, root.length, text)
        root.release()
    tree = trees.add(await asyncio.to_thread(_as_json, result))
    votes = None if result.votes is None else {a: _finite(vote) for a, vote in result.votes.items()}
    more = {
        "strategy": search.strategy.name,
        "candidates": len(result.candidates),
        "score": _finite(best.score),
        "votes": votes,
        "stopped": result.stopped,
        "seconds": result.stats.seconds,
        "tree": None if tree is None else f"{PATH}{tree}",
    }
    emit(Piece(0, result.answer, finish_reason=finish_reason(best.finish_reason), more={"tts": more}))


async def _searched(run: BoundedRun, search: Search) -> SearchResult:
    """Runs the search.

    Raises APIError, 400, for options that the strategy refuses or cannot compute with, and 500 for a scorer
    with invalid scores. Failures after work began are logged too: they may be our fault.
    """
    scorer = {} if search.scorer is None else {"scorer": search.scorer}
    try:
        return await search.strategy(run, **search.options, **scorer)
    except WrongScoresError as error:
        _log.error("a scorer gave what is no score:\n%s", "".join(traceback.format_exception(error)))
        named = "the scorer" if search.scorer_name is None else given(search.scorer_name)
        problem = (
            f"tts.scorer: {named} did not give one finite number for each branch; the server's log says more"
        )
        raise APIError(500, problem, "tts.scorer", "internal_error") from error
    except ArithmeticError as error:
        if not any(isinstance(value, float) for value in search.options.values()):
            raise
        _log_failure(search, error)
        problem = "got options whose numbers overflow or divide by zero, expected moderate ones"
        raise invalid("tts", problem) from error
    except (TypeError, ValueError) as error:
        name, _, problem = str(error).partition(": ")
        if not name.isidentifier() or not problem.startswith("got "):
            raise
        if run.began:  # the message may reveal more than the option
            if name not in search.options:
                raise
            _log_failure(search, error)
            problem = f"got {given(search.options[name])}, which {search.strategy.name} does not take"
        if name in search.strategy.parameters:
            raise invalid(f"tts.{name}", renamed_in_ranges(problem, name, f"tts.{name}")) from error
        raise invalid("tts", f"{name}: {problem}") from error  # from a part of the strategy


def _log_failure(search: Search, error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))
    _log.warning("options of a search by %s were refused after it began:\n%s", search.strategy.name, trace)


async def _watch(run: SearchRun, search: Search, emit: Emit) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        scores = [node.score for node in run.tree if node.score is not None]
        progress = {
            "strategy": search.strategy.name,
            "seconds": run.record.seconds,
            "generated_tokens": run.generated,
            "branches": len(run.held),
            "nodes": len(run.tree),
            "candidates": len(run.candidates),
            "best_score": _finite(max(scores, default=None)),
        }
        emit(Piece(0, "", more={"tts": {"progress": progress}}))


def _as_json(result: SearchResult) -> bytes:
    return json.dumps(result.to_dict(), separators=(",", ":"), allow_nan=False).encode()


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None
