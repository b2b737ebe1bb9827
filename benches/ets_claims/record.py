"""Records trees of the default model's searches at width 16, with Monte Carlo values as scores.

The value of a prefix is the share of its rollouts that end with the right answer. REBASE and ETS search each
problem from the same seed, so that a prefix that both reach is one node with one value. A problem is written
when both have ended: a later call with the same file continues with the next one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.core.interfaces import Branch
from tts_decode.core.params import mix
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.records.record_file import RecordFile
from tts_decode.search import STRATEGIES, SearchResult
from tts_decode.search.hidden import hidden_states
from tts_decode.search.steps.ets import mean_hidden

from benches.ets_claims.problems import Problem, at_its_end, problems, stated

Record = dict[str, Any]
TokenPath = tuple[int, ...]  # ids after the prompt

SCHEMA, VERSION = "ets-claims-record", 1
WIDTH, ROLLOUTS = 16, 8
MAX_STEP, MAX_TOKENS = 120, 560
# At temperature 1 the model leaves the form of the steps; at this one few branches do.
TEMPERATURE, TOP_P = 0.5, 0.95
PUBLISHED = {"lambda_b": 1.0, "lambda_d": 1.5}  # of the ETS code for width 16
THRESHOLD = 0.2  # cosine distance of clusters: the package's default for hidden states
_SEARCHES: dict[str, Record] = {"rebase": {}, "ets": PUBLISHED | {"cluster_threshold": THRESHOLD}}
_COMPONENTS = 32  # of an embedding, of 576, in bytes
PARALLEL = 8  # problems at a time: the longest rollouts leave a batch half empty
_ROLLOUT_SEED = 0x20110  # apart from the seeds of forks


class Valued:
    """The value and the embedding of every prefix of one problem, each made once."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.values: dict[TokenPath, int] = {}  # rollouts that were right
        self.embeddings: dict[TokenPath, np.ndarray[Any, Any]] = {}
        self.rolled_out = 0  # tokens

    async def score(self, branches: Sequence[Branch]) -> list[float]:
        """Scorer. A finished branch keeps the score of its prefix: its own would be the truth."""
        paths = [_path(branch) for branch in branches]
        for path, row in zip(paths, mean_hidden([b.steps[-1] for b in branches]), strict=True):
            self.embeddings.setdefault(path, row)
        new = {
            path: branch
            for path, branch in zip(paths, branches, strict=True)
            if not branch.finished and path not in self.values
        }
        self.values |= dict(zip(new, await gather(map(self._right, new.values())), strict=True))
        return [
            (b.scores[-1] if b.scores else 0.5) if b.finished else self.values[p] / ROLLOUTS
            for p, b in zip(paths, branches, strict=True)
        ]

    async def _right(self, branch: Branch) -> int:
        """How many rollouts come to the right answer."""
        copy = branch.copy()  # so that the forks of the search keep their seeds
        rollouts = copy.fork(ROLLOUTS, seeds=[mix(branch.seed, _ROLLOUT_SEED, i) for i in range(ROLLOUTS)])
        copy.release()
        return sum(await gather(self._one(rollout) for rollout in rollouts))

    async def _one(self, rollout: Branch) -> bool:
        began = rollout.length
        while not rollout.finished:
            await rollout.step()
        self.rolled_out += rollout.length - began
        right = stated(rollout.text) == self._problem.answer
        rollout.release()
        return right


def _path(branch: Branch) -> TokenPath:
    return tuple(branch.tokens[branch.prompt_length :])


async def searches(decoder: TreeDecoder, problem: Problem, sampling: SamplingParams) -> Record:
    """Both searches of a problem as one tree.

    A node is [parent, tokens, right rollouts or -1 if finished, answer]; node 0 is the prompt. embeddings:
    int8 [nodes - 1, 32] in base64, unit vectors times 127. searches: for each, its nodes in the order of its
    own tree.
    """
    began = time.perf_counter()
    valued = Valued(problem)
    nodes: list[list[Any]] = []
    rows: list[np.ndarray[Any, Any]] = []
    places: dict[tuple[int, int, TokenPath], int] = {}
    order: dict[str, list[int]] = {}
    for name, options in _SEARCHES.items():
        root = await decoder.root(problem.prompt, sampling)
        try:
            result: SearchResult = await STRATEGIES[name](root, n=WIDTH, scorer=valued.score, **options)
        finally:
            root.release()
        order[name] = _join(result, valued, nodes, rows, places)
    return {
        "problem": problem.name,
        "answer": problem.answer,
        "nodes": nodes,
        "embeddings": base64.b64encode(_compressed(np.stack(rows).astype(np.float64)).tobytes()).decode(),
        "searches": order,
        "rolled_out": valued.rolled_out,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _join(
    result: SearchResult,
    valued: Valued,
    nodes: list[list[Any]],
    rows: list[np.ndarray[Any, Any]],
    places: dict[tuple[int, int, TokenPath], int],
) -> list[int]:
    """Adds the nodes of a search that are not there yet, and their embeddings; the places of all of them.

    places: by the place above, the number among its siblings, and the tokens: equal siblings are nodes of
    their own.
    """
    order: list[int] = []
    paths: list[TokenPath] = []
    texts: list[str] = []
    below: dict[int, int] = {}
    for node in result.tree:
        above = -1 if node.parent < 0 else order[node.parent]
        path = () if above < 0 else paths[node.parent] + node.tokens
        text = "" if above < 0 else texts[node.parent] + node.text
        paths.append(path)
        texts.append(text)
        key = above, below.setdefault(above, 0), node.tokens
        below[above] += 1
        if key not in places:
            places[key] = len(nodes)
            value = 0 if above < 0 else valued.values.get(path, -1)
            nodes.append([above, len(node.tokens), value, stated(text) if value < 0 else None])
            if above >= 0:
                rows.append(valued.embeddings[path])
        order.append(places[key])
    return order


def _compressed(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Unit vectors in the space of the leading principal components, not centred, int8 [N, 32]."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(unit, full_matrices=False)
    found = np.zeros((len(rows), _COMPONENTS))
    projected = unit @ axes[:_COMPONENTS].T
    found[:, : projected.shape[1]] = projected
    found /= np.abs(found).max(axis=1, keepdims=True)
    return np.rint(127 * found).astype(np.int8)


def settings() -> Record:
    return {
        "model": DEFAULT_MODEL,
        "dtype": "bfloat16",
        "width": WIDTH,
        "rollouts": ROLLOUTS,
        "max_step_tokens": MAX_STEP,
        "max_tokens": MAX_TOKENS,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "searches": _SEARCHES,
    }


def open_record(path: Path) -> RecordFile:
    """The file of the recording, begun or gone on with; a usage error where it is of other settings."""
    file = RecordFile(path, SCHEMA, VERSION, resume=True, error=typer.BadParameter)
    expected = json.loads(json.dumps(settings()))
    if file.header is None:
        file.write(expected)
    elif {name: file.header.get(name) for name in expected} != expected:
        file.close()
        raise typer.BadParameter(f"{path} is of other settings; remove it, or give another file")
    return file


def record(path: Path, count: int) -> None:
    """Searches the first `count` problems, those that the file lacks."""
    file = open_record(path)
    done = {found["problem"] for found in file.records}
    todo = [problem for problem in problems(count) if problem.name not in done]
    if not todo:
        file.close()
        return
    model, tokenizer = load_model(DEFAULT_MODEL, dtype="bfloat16")
    decoder = TreeDecoder(model, tokenizer, kv_bytes=4 << 30)
    sampling = SamplingParams(
        TEMPERATURE,
        top_p=TOP_P,
        seed=1,
        stop=("\n\n",),
        max_tokens=MAX_TOKENS,
        max_step_tokens=MAX_STEP,
        stop_when=at_its_end,
        # No end and no further question before the last step.
        suppress_token_ids=(*tokenizer.encode("Question")[:1], *tokenizer.all_special_ids),
    )
    began = time.perf_counter()
    slots = asyncio.Semaphore(PARALLEL)

    async def one(problem: Problem) -> None:
        async with slots:
            found = await searches(decoder, problem, sampling)
        file.write(found)
        done.add(problem.name)
        print(
            f"{time.perf_counter() - began:6.0f} s  {len(done)} of {count} problems; {problem.name}: "
            f"{len(found['nodes'])} nodes, {found['rolled_out']:,} tokens of rollouts",
            file=sys.stderr,
        )

    async def all_of_them() -> None:
        with hidden_states(decoder):
            await gather(one(problem) for problem in todo)

    try:
        decoder.run(all_of_them())
    finally:
        file.close()
