"""Bandits over budgets: allot samples across questions, and find the setting that is worth its tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tts_kernels.checks import a_type, any_integer, is_real, number

from ..core.checks import at_least, check_choice
from ..core.running import gather
from ..errors import OutOfPagesError, PromptTooLongError
from ..rewards.scorer import Scorer
from ..select import EXPLORATION_RULES, ExplorationRule, better_half, halving_rounds, next_question
from .answers import sample
from .model_calls import SearchStoppedError
from .policy import Setting
from .policy_fit import Question
from .result import Candidate
from .run import SearchRun

if TYPE_CHECKING:
    from ..core.interfaces import Branch, Decoder
    from ..core.params import SamplingParams
    from ..core.prompts import Prompt


@dataclass
class Allotted:
    """The samples of one question.

    Attributes:
        samples, rewards: in the order in which they were drawn.
        passed: whether one reached the threshold.
        stopped: why sampling stopped although it has not passed; None: nothing went wrong.
    """

    samples: list[Candidate] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    passed: bool = False
    stopped: str | None = None

    @property
    def best(self) -> Candidate | None:
        """Returns the sample with the highest reward, the first among equals; None without samples."""
        if not self.samples:
            return None
        return self.samples[max(range(len(self.samples)), key=self.rewards.__getitem__)]

    @property
    def tokens(self) -> int:
        return sum(len(candidate.tokens) for candidate in self.samples)


async def allot_samples(
    decoder: Decoder,
    questions: Sequence[Question],
    *,
    max_samples: int,
    scorer: Scorer | None = None,
    rule: ExplorationRule = "ucb",
    threshold: float = 1.0,
    exploration: float = 1.0,
    batch: int = 1,
    parallel: int = 1,
    seed: int = 0,
    sampling: SamplingParams | None = None,
    make_prompt: Callable[[str], Prompt] = str,
) -> list[Allotted]:
    """Samples answers to many questions from one budget; lacks the paper's rules but elimination.

    Zuo and Zhu, "Strategic Scaling of Test-Time Compute: A Bandit Learning Approach", arXiv 2506.12721:
    questions are the arms of a bandit. Once an answer passes, its question is sampled no more, so easy
    questions cost little and leave their share to the others. A rule chooses among those by their rewards so
    far.

    Args:
        max_samples: total number of answers.
        questions: each is sampled `batch` times first, in order.
        scorer: rewards; None: the verifier of each question.
        rule, exploration: as in `select.next_question`. "uniform" is elimination alone.
        threshold: reward from which an answer passes; if no reward can reach it, the rule decides every
            sample.
        batch: answers drawn for a question when it is chosen.
        parallel: questions chosen at a time, each before the rewards of the others are known.
        seed: of the draws of "thompson".
        sampling, make_prompt: as in `measure_settings`.

    Departures: written from the paper's abstract. Elimination is theirs; of the rules, "ucb" is UCB1 in the
    form of `select.uct`, and "thompson" is an addition.

    Returns:
        One entry per question. A question is `stopped` if its scorer or verifier raised an exception, or if
        it does not fit into the model or its KV pages: it keeps its samples that have a reward, and the
        others continue.

    Raises:
        ValueError: a number is out of range, a question has neither verifier nor scorer, or its verifier
            returned a number that is not finite (TypeError: no number), or for "thompson" one outside [0, 1].
    """
    at_least(1, max_samples=max_samples, batch=batch, parallel=parallel)
    any_integer("seed", seed)
    check_choice("rule", rule, EXPLORATION_RULES)
    number("threshold", threshold)
    number("exploration", exploration, low=0)
    if scorer is None:
        _check_verifiers(questions)
    rng = random.Random(seed)
    found = [Allotted() for _ in questions]
    active = list(range(len(questions)))
    left = max_samples
    with ExitStack() as held:
        runs: dict[int, tuple[SearchRun, ExitStack]] = {}

        async def draw(index: int, count: int) -> None:
            got, known = found[index], len(found[index].samples)
            try:
                if index not in runs:
                    root = await decoder.root(make_prompt(questions[index].prompt), sampling)
                    runs[index] = _opened(root, held)
                await sample(runs[index][0], count, scorer)
            except (SearchStoppedError, PromptTooLongError, OutOfPagesError) as error:
                got.stopped = str(error)
            ended = runs[index][0].candidates[known:] if index in runs else []
            for candidate in ended:
                returned = candidate.scores[-1] if scorer is not None else verdict(index, candidate)
                if isinstance(returned, SearchStoppedError):
                    got.stopped = str(returned)
                    break
                reward = _checked(returned, index)
                if rule == "thompson" and not 0 <= reward <= 1:
                    raise ValueError(
                        f"rule: got 'thompson' with the reward {reward} of questions[{index}], expected "
                        "rewards from 0 to 1; take 'ucb' or 'uniform'"
                    )
                got.samples.append(candidate)
                got.rewards.append(reward)
                got.passed |= reward >= threshold

        def verdict(index: int, candidate: Candidate) -> object:
            """Returns the verifier's result, or the reason why there is none."""
            verify = questions[index].verify
            assert verify is not None  # checked before
            try:
                return verify(candidate.text)
            except Exception as error:
                return SearchStoppedError(
                    f"the verifier of questions[{index}] raised {type(error).__name__}: {error}"
                )

        while active and left:
            chosen: list[int] = []
            while len(chosen) < min(parallel, len(active)):
                others = [index for index in active if index not in chosen]
                seen = [found[index].rewards for index in others]
                chosen.append(others[next_question(seen, rule, exploration=exploration, rng=rng)])
            counts = [min(batch, max(0, left - batch * place)) for place in range(len(chosen))]
            drawn = [(index, count) for index, count in zip(chosen, counts, strict=True) if count]
            await gather(draw(index, count) for index, count in drawn)
            left -= sum(count for _, count in drawn)
            for index, _ in drawn:
                if found[index].passed or found[index].stopped is not None:
                    active.remove(index)
                    if index in runs:
                        runs[index][1].close()
    return found


def _opened(root: Branch, held: ExitStack) -> tuple[SearchRun, ExitStack]:
    """Returns a run with its own root, and the stack that ends both; `held` ends them too."""
    own = held.enter_context(ExitStack())
    own.callback(root.release)
    run = SearchRun(root)
    own.enter_context(run.of("allot_samples", {}))
    return run, own


def _checked(reward: object, index: int) -> float:
    """Returns a verifier's result as a number."""
    if not is_real(reward) and not isinstance(reward, bool):
        raise TypeError(f"questions[{index}]: got {a_type(reward)} of its verifier, expected a number")
    return number(f"what the verifier of questions[{index}] returned", float(reward))


def _check_verifiers(questions: Sequence[Question]) -> None:
    for index, question in enumerate(questions):
        if question.verify is None:
            raise ValueError(
                f"questions[{index}]: got one without a verifier, expected one, or a scorer for all"
            )


@dataclass
class Arm:
    """A setting at a size, and the results of its searches.

    Attributes:
        rewards, tokens: of each question that it was tried on, in order.
    """

    setting: Setting
    n: int
    rewards: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.setting} at {self.n}"

    def value(self, price: float) -> float:
        """Returns the mean reward minus `price` per token; -inf before it was tried."""
        if not self.rewards:
            return -math.inf
        return (math.fsum(self.rewards) - price * sum(self.tokens)) / len(self.rewards)


async def halve_settings(
    decoder: Decoder,
    questions: Sequence[Question],
    arms: Sequence[Arm],
    *,
    max_searches: int,
    price: float = 0.0,
    scorer: Scorer | None = None,
    agg_strategy: str = "last",
    sampling: SamplingParams | None = None,
    make_prompt: Callable[[str], Prompt] = str,
) -> Arm:
    """Finds the setting and size that are worth their tokens, by successive halving.

    Karnin et al., "Almost Optimal Exploration in Multi-Armed Bandits", ICML 2013; see
    `select.halving_rounds`. Each round searches the next questions with all remaining arms, so arms are
    compared on the same questions, and the half with higher values continues. `fit_policy` instead tries
    every setting on every question, and distinguishes hard questions from easy ones.

    Args:
        arms: without results, or with those of an earlier call; their results are filled in.
        max_searches: total number of searches.
        price: reward that a token must bring: an arm's value is its mean reward minus `price` per token. 0:
            the best reward, whatever it costs.
        scorer, agg_strategy, sampling, make_prompt: as in `measure_settings`; a scorer only guides searches.

    Departures: an arm's value covers all questions that it was tried on, not only those of the last round.

    Returns:
        The best of the remaining arms.

    Raises:
        ValueError: a number is out of range, a question has no verifier, there are too few questions, or a
            setting's options do not fit its size.
    """
    number("price", price, low=0)
    _check_verifiers(questions)
    for arm in arms:
        at_least(1, n=arm.n)
        arm.setting.check_size(arm.n)
    plan = halving_rounds(len(arms), max_searches)
    needed = sum(pulls for _, pulls in plan)
    if needed > len(questions):
        raise ValueError(
            f"questions: got {len(questions)}, expected at least {needed} for {max_searches} searches of "
            f"{len(arms)} arms; give more, or lower max_searches"
        )
    known = {"scorer": scorer, "agg_strategy": agg_strategy}
    left, begin = list(arms), 0

    async def search(arm: Arm, index: int, root: Branch) -> tuple[float, int]:
        result = await arm.setting.strategy(root, **arm.setting.arguments(arm.n, known))
        verify = questions[index].verify
        assert verify is not None  # it was checked
        return _checked(verify(result.best.text), index), result.stats.generated_tokens

    for _, pulls in plan:
        for index in range(begin, begin + pulls):
            root = await decoder.root(make_prompt(questions[index].prompt), sampling)
            try:
                found = await gather(search(arm, index, root) for arm in left)
            finally:
                root.release()
            for arm, (reward, tokens) in zip(left, found, strict=True):
                arm.rewards.append(reward)
                arm.tokens.append(tokens)
        begin += pulls
        left = [left[i] for i in better_half([arm.value(price) for arm in left])]
    return max(left, key=lambda arm: arm.value(price))
