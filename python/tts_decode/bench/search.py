"""How the time of a search is divided: model, sampling, the decoder's own work, the strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..core.params import SamplingParams
from ..decoding import drawing
from ..decoding.decoder import TreeDecoder
from ..rewards import mean_probability
from ..search import Strategy
from ..tasks import Task


class SearchTimes(NamedTuple):
    """Seconds of a strategy's searches, run one at a time.

    model: the forward. sampling: the draw of the next tokens from the logits. engine: the decoder's other
    work, such as plan, pages and requests. strategy: everything else: selection, scores, records, asyncio.
    steps: forwards of the model. tokens: generated. peak_bytes: of KV.
    """

    wall: float
    model: float
    sampling: float
    engine: float
    strategy: float
    steps: int
    tokens: int
    peak_bytes: int

    def shares(self) -> dict[str, float]:
        """Returns shares of the wall-clock time; they add up to 1."""
        return {part: getattr(self, part) / self.wall for part in PARTS}


PARTS = ("model", "sampling", "engine", "strategy")


@dataclass
class _Clock:
    """Adds up the wall time spent in a function."""

    seconds: float = 0.0

    @contextmanager
    def on(self, owner: Any, name: str) -> Iterator[None]:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)


def measure_search(
    decoder: TreeDecoder,
    strategy: Strategy[...],
    tasks: Sequence[Task],
    *,
    n: int,
    sampling: SamplingParams,
    on_task: Callable[[int], object] = lambda done: None,
) -> SearchTimes:
    """Measures the strategy's searches on the tasks with a new decoder, whose counters are zero.

    n: the value of the option `strategy.size`.
    """
    options: dict[str, Any] = {strategy.size: n} | (
        {"scorer": mean_probability()} if strategy.needs_scorer else {}
    )
    forward, draw = _Clock(), _Clock()

    async def search(task: Task) -> None:
        turn = [{"role": "user", "content": task.prompt}]
        prompt = turn if decoder.tokenizer.chat_template else task.prompt
        root = await decoder.root(prompt, sampling)
        try:
            await strategy(root, **options)
        finally:
            root.release()

    started = time.perf_counter()
    with forward.on(decoder.runtime.engine, "forward"), draw.on(drawing, "sample"):
        for done, task in enumerate(tasks):
            on_task(done)
            decoder.run(search(task))
    wall, stats = time.perf_counter() - started, decoder.stats()
    engine = stats.seconds - forward.seconds - draw.seconds
    return SearchTimes(
        wall,
        forward.seconds,
        draw.seconds,
        engine,
        wall - stats.seconds,
        stats.steps,
        stats.generated_tokens,
        stats.peak_bytes,
    )
