"""Forest-of-Thought: several trees of self-refined answers that vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ...core.checks import at_least
from ...rewards.scorer import Scorer
from ...select import extract_answer, last_choice, most_similar, rating, self_refine_uct, vote
from ..answers import Extract, answers_of
from ..decisions import Decision
from ..result import Candidate, SearchResult
from ..run import SearchRun
from ..strategy import strategy

if TYPE_CHECKING:
    from ...core.interfaces import Branch

_ANSWERED = "{question}\n\nProposed answer:\n{answer}\n\n"
RATE = _ANSWERED + "Rate this answer strictly from 0 to 100. Reply with the number alone."
CRITIQUE = _ANSWERED + "Name every flaw of this answer."
REFINE = _ANSWERED + "What is wrong with it:\n{critique}\n\nWrite a better answer to the question."
CORRECT = _ANSWERED + "This answer is uncertain. Check it and answer the question again."
EXPERT = (
    "{question}\n\n{answers}\n\nYou are an expert on such questions. Compare how these answers were "
    "reasoned, and end with one line that names the best one, such as: Answer 1"
)
EXAMPLE = "{example}\n{solution}\n\n{question}"
NO_ANSWER = "I do not know."
MAX_CHILDREN = 3  # refinements of an answer before it counts as explored; from the authors' code


@dataclass(eq=False)
class _Tree:
    """Answers of one tree in the order in which they were made, each with its rewards."""

    answers: list[Candidate | None] = field(default_factory=list)  # None: the blank one
    parents: list[int] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)  # whether the text contains an answer
    layers: list[int] = field(default_factory=list)

    def add(self, answer: Candidate | None, parent: int, reward: float, valid: bool) -> None:
        self.answers.append(answer)
        self.parents.append(parent)
        self.rewards.append([reward])
        self.valid.append(valid)
        self.layers.append(0 if parent < 0 else self.layers[parent] + 1)

    @property
    def active(self) -> bool:
        """The activation indicator: whether the deepest layer holds a valid answer."""
        last = max(self.layers)
        return any(valid for valid, layer in zip(self.valid, self.layers, strict=True) if layer == last)

    def to_explore(self, exploration: float, max_active: int) -> int:
        """Returns the answer to refine next: the highest bound among those not fully explored.

        Each layer offers its `max_active` best ones by Q, valid ones first.
        """
        q, bounds = self_refine_uct(self.rewards, self.parents, exploration)
        own = [(min(given) + sum(given) / len(given)) / 2 for given in self.rewards]
        children: dict[int, list[float]] = {}
        for parent, value in zip(self.parents, own, strict=True):
            children.setdefault(parent, []).append(value)
        open_ = [
            i
            for i in range(len(q))
            if len(below := children.get(i, [])) < MAX_CHILDREN or max(below) < own[i]
        ]
        active: list[int] = []
        for layer in set(self.layers):
            members = [i for i in open_ if self.layers[i] == layer]
            active += sorted(members, key=lambda i: (not self.valid[i], -q[i]))[:max_active]
        return max(sorted(active), key=bounds.__getitem__)

    def best(self) -> tuple[Candidate, float]:
        """Returns the tree's activated answer, complete if there is one, and its Q."""
        q, _ = self_refine_uct(self.rewards, self.parents, 0.0)
        nodes = zip(q, self.answers, self.valid, strict=True)
        answered = [(value, answer, valid) for value, answer, valid in nodes if answer]
        value, answer, _ = max(answered, key=lambda node: (node[2], node[1].complete, node[0]))
        return answer, value


@strategy("several trees of self-refined answers, a consensus decides")
async def forest_of_thought(
    run: SearchRun,
    *,
    max_trees: int = 2,
    scorer: Scorer | None = None,
    max_rounds: int = 1,
    max_active: int = 5,
    correct_threshold: float = -1.0,
    exploration: float = 0.014,
    examples: Sequence[tuple[str, str]] = (),
    decide_by: Literal["cgdm", "max", "last", "weighted", "majority"] = "cgdm",
    extract: Extract = extract_answer,
) -> SearchResult:
    """Grows small trees of self-refined answers; then a consensus decides; lacks trees of steps.

    Bi et al., "Forest-of-Thought: Scaling Test-Time Compute for Enhancing LLM Reasoning", arXiv 2412.09078;
    its trees are MCTSr (Zhang et al., arXiv 2406.07394). A tree begins with an answer and a blank one; each
    iteration rates the most promising answer once more, criticises it, refines it and rates the refinement.
    Growth stops as soon as more than half of `max_trees` trees agree.

    Args:
        max_trees: maximum number of trees; the default, like the one of `max_rounds`, is from its code.
        scorer: rewards of answers, in [0, 1]; None: the model rates them itself.
        max_rounds: refinements in each tree.
        max_active: sparse activation: number of best answers of a layer (a depth of refinement) that may be
            refined; the code keeps 5 per layer.
        correct_threshold: dynamic self-correction: the model answers again if an answer is less likely than
            this (mean log-probability per token, nats), and the more confident answer stays. -inf: never.
        exploration: weight of the bonus in the bound; the code's 1.4 for ratings of 0 to 100.
        examples: solved questions; each tree after the first shows the one most like the question.
        decide_by: "cgdm" (consensus-guided): the answer of more than half of the trees, else the one that the
            model names, as an expert, when shown those of all trees. "max", "last", "weighted" and "majority"
            as in `best_of_n`, among the trees' best answers.
        extract: the answer in a text, or None to abstain.

    Sparse activation: a tree whose deepest layer holds no valid answer (none that `extract` finds) stops
    growing and takes no part in the decision, unless this holds for all trees. Others take part with the
    valid answer of the highest Q.

    Departures. All trees are of self-refined answers; the code also grows trees of steps for one puzzle.
    Nothing is compared with the true answer, unlike in the code's default stop; trees vote with extracted
    answers, not whole texts; ratings are shares of 1.
    """
    at_least(1, max_trees=max_trees, max_active=max_active)
    at_least(0, max_rounds=max_rounds)
    run.decide_by(decide_by, extract, "cgdm")

    async def rate(answer: str) -> float:
        (reply,) = await run.ask(RATE.format(question=run.question, answer=answer))
        return rating(reply) or 0.0

    async def answered(branch: Branch) -> tuple[Candidate, float]:
        """Completes an answer, corrects it if it is uncertain, and rates it."""
        await run.complete(branch)
        if _confidence(branch) < correct_threshold and not run.over:
            prompt = CORRECT.format(question=run.question, answer=branch.text)
            second = await run.prompt(prompt, sources=[run.node(branch)], question=run.question)
            await run.complete(second)
            if _confidence(second) > _confidence(branch):
                branch, second = second, branch
            run.prune([second])
        reward = await rate(branch.text) if scorer is None else (await run.score([branch], scorer))[0]
        return run.end(branch, reward), reward

    async def add(tree: _Tree, branch: Branch, parent: int) -> None:
        candidate, reward = await answered(branch)
        tree.add(candidate, parent, reward, extract(candidate.text) is not None)

    async def grow(number: int) -> _Tree:
        tree = _Tree()
        liked = most_similar(run.question, [question for question, _ in examples]) if number else None
        if liked is None:
            (first,) = run.fork(run.root)
        else:
            example, solution = examples[liked]
            prompt = EXAMPLE.format(example=example, solution=solution, question=run.question)
            first = await run.prompt(prompt, question=run.question)
        await add(tree, first, -1)
        if max_rounds and tree.active and not run.over:
            tree.add(None, -1, await rate(NO_ANSWER) if scorer is None else 0.0, False)
        for _ in range(max_rounds):
            if run.over or not tree.active:
                break
            i = tree.to_explore(exploration, max_active)
            weak = tree.answers[i]
            text = NO_ANSWER if weak is None else weak.text
            tree.rewards[i].append(await rate(text) if scorer is None else tree.rewards[i][0])
            (critique,) = await run.ask(CRITIQUE.format(question=run.question, answer=text))
            prompt = REFINE.format(question=run.question, answer=text, critique=critique)
            sources = [weak.node] if weak else []
            await add(tree, await run.prompt(prompt, sources=sources, question=run.question), i)
        return tree

    trees: list[_Tree] = []
    votes: dict[str, float] = {}
    while len(trees) < max_trees and not run.over:
        trees.append(await grow(len(trees)))
        leaders = [tree.best()[0] for tree in trees if tree.active]
        votes = vote(await answers_of(leaders, extract))
        if max(votes.values(), default=0) > max_trees / 2 and len(trees) > 1:
            break
    if not trees:
        return await run.result()
    activated = [tree.best() for tree in trees if tree.active] or [tree.best() for tree in trees]
    votes = vote(await answers_of([candidate for candidate, _ in activated], extract))
    agreed = max(votes.values(), default=0) > len(activated) / 2
    if decide_by != "cgdm" or agreed:
        decision = Decision("majority" if decide_by == "cgdm" else decide_by, extract)
        chosen, votes = await decision([replace(candidate, score=q) for candidate, q in activated])
        return await run.result(activated[chosen][0], votes)
    backers = activated
    if not run.over:
        named = {f"Answer {i}": pair for i, pair in enumerate(activated, start=1)}
        answers = "\n\n".join(f"{name}:\n{pair[0].text}" for name, pair in named.items())
        sources = [candidate.node for candidate, _ in activated]
        (verdict,) = await run.ask(EXPERT.format(question=run.question, answers=answers), sources=sources)
        name = last_choice(verdict, list(named))
        backers = activated if name is None else [named[name]]
    best, _ = max(backers, key=lambda pair: (pair[0].complete, pair[1]))
    return await run.result(best, votes)


def _confidence(branch: Branch) -> float:
    """Returns the mean log-probability per token, nats."""
    return sum(branch.logprobs) / max(len(branch.logprobs), 1)
