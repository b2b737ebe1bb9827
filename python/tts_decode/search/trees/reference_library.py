"""Solved problems for retrieval: whole ones by the kind of problem, single steps by the previous step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.checks import at_least
from ...core.running import gather
from ...select import lexical_similarity

if TYPE_CHECKING:
    from ...core.interfaces import Decoder
    from ...core.params import SamplingParams
    from ...core.prompts import Prompt

    EmbedTexts = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]

TEMPLATE = "{question}\n\nIn one line: what kind of problem is this, and which method solves it?"


@dataclass(frozen=True)
class SolvedProblem:
    """A reference problem, its solution step by step, and its template.

    The template is one line on its kind and method; "" means the question itself.
    """

    question: str
    steps: tuple[str, ...]
    template: str = ""


class ReferenceLibrary:
    """The reference problems that `r2_retrieval` retrieves from (Dou et al., arXiv 2507.05557).

    Args:
        problems: at least one, each with at least one step.
        embed: embeddings [N, D] of N texts, compared by cosine, such as the `encode` of a
            sentence-transformers model; None compares word counts.
        num_examples, num_shown: problems, and steps, that a query returns.
    """

    def __init__(
        self,
        problems: Sequence[SolvedProblem],
        embed: EmbedTexts | None = None,
        *,
        num_examples: int = 2,
        num_shown: int = 2,
    ) -> None:
        at_least(1, num_examples=num_examples, num_shown=num_shown)
        if not problems:
            raise ValueError("problems: got nothing, expected at least one solved problem")
        if (i := next((i for i, problem in enumerate(problems) if not problem.steps), None)) is not None:
            raise ValueError(f"problems[{i}].steps: got nothing, expected at least one step; leave it out")
        self._problems = list(problems)
        self._num_examples, self._num_shown = num_examples, num_shown
        self._places = _Index([problem.template or problem.question for problem in problems], embed)
        before = [text for problem in problems for text in (problem.question, *problem.steps[:-1])]
        self._steps = [step for problem in problems for step in problem.steps]
        self._before = _Index(before, embed)

    def problems_like(self, template: str) -> str:
        """Returns questions and solutions of the problems with the most similar templates, best first."""
        found = [self._problems[i] for i in self._places.nearest(template, self._num_examples)]
        return "\n\n".join("\n".join((problem.question, *problem.steps)) for problem in found)

    def steps_like(self, text: str) -> str:
        """Returns the steps that followed what is most similar to this text.

        The text is a step, or a question if the first step comes next.
        """
        found = [self._steps[i].strip() for i in self._before.nearest(text, self._num_shown)]
        return "\n".join(dict.fromkeys(found))


async def with_templates(
    decoder: Decoder, problems: Sequence[SolvedProblem], sampling: SamplingParams | None = None
) -> list[SolvedProblem]:
    """Returns the problems; the model writes the templates that are missing."""

    async def written(problem: SolvedProblem) -> SolvedProblem:
        if problem.template:
            return problem
        asked: Prompt = TEMPLATE.format(question=problem.question)
        if decoder.knows_chat:
            asked = [{"role": "user", "content": asked}]
        params = sampling or decoder.sampling
        root = await decoder.root(asked, replace(params, stop=(), max_step_tokens=params.max_tokens))
        try:
            return replace(problem, template=(await root.step()).text.strip())
        finally:
            root.release()

    return await gather(written(problem) for problem in problems)


class _Index:
    """Texts ranked by their similarity to a query."""

    def __init__(self, texts: list[str], embed: EmbedTexts | None) -> None:
        self._texts, self._embed = texts, embed
        self._vectors = None if embed is None else _directions(embed(texts))

    def nearest(self, query: str, count: int) -> list[int]:
        """Returns the most similar texts. Ties go to the lower index; by words, only texts that share one."""
        if self._embed is None or self._vectors is None:
            likeness = [lexical_similarity(query, text) for text in self._texts]
            ranked = sorted(range(len(likeness)), key=lambda i: -likeness[i])
            return [i for i in ranked[:count] if likeness[i] > 0]
        cosines = self._vectors @ _directions(self._embed([query]))[0]
        return [int(i) for i in np.argsort(-cosines, kind="stable")[:count]]


def _directions(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))
