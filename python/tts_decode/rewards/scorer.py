"""The scorer interface, and the only place that checks a scorer's results."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tts_kernels.checks import a_type, shown

from ..errors import ReturnedError, ScorerError

if TYPE_CHECKING:
    from ..core.interfaces import Branch

    Scorer = Callable[[Sequence[Branch]], Awaitable[Sequence[float]]]
    """Scores branches as they stand, in order; leaves them and the KV cache as they were."""
else:
    Scorer = Callable


def check_scorer(scorer: Any) -> None:
    """Raises TypeError for anything not callable; whether it is async shows in its first call."""
    if not callable(scorer):
        raise TypeError(f"scorer: got {type(scorer).__name__}, expected an async function of branches")


def scorer_name(scorer: Scorer) -> str:
    """Returns a scorer's name in errors: its own `__name__`, else its class's."""
    if isinstance(scorer, partial):
        return scorer_name(scorer.func)
    return str(getattr(scorer, "__name__", type(scorer).__name__))


async def score_branches(scorer: Scorer, branches: Sequence[Branch]) -> list[float]:
    """Returns one finite float per branch, in order.

    Otherwise raises TypeError or ValueError that names scorer and branch, or ScorerError if the scorer
    raised.
    """
    check_scorer(scorer)
    name = scorer_name(scorer)
    try:
        call = scorer(branches)
        values = await call if isinstance(call, Awaitable) else call
    except Exception as error:
        raise ScorerError(f"scorer {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(call, Awaitable):
        raise ReturnedError(
            f"scorer {name}: got {a_type(call)} of it, expected an awaitable; write it as async def"
        )
    if not hasattr(values, "__len__"):
        raise ReturnedError(f"scorer {name}: got {a_type(values)} of it, expected a list of numbers")
    if len(values) != len(branches):
        raise ValueError(
            f"scorer {name}: got {len(values)} scores for {len(branches)} branches, expected one each"
        )
    scores = []
    for branch, value in zip(branches, values, strict=True):
        what = f"scorer {name}: got the score {shown(value)} for branch {branch.id}, expected a finite number"
        try:
            scores.append(float(value))
        except OverflowError:  # an int beyond the range of float64
            raise ValueError(what) from None
        except TypeError:
            raise ReturnedError(what) from None
        except ValueError:
            raise ValueError(what) from None
        if not math.isfinite(scores[-1]):
            raise ValueError(what)
    return scores
