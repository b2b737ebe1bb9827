"""Makes a strategy of a coroutine over a `SearchRun`: a name, a call on a root, a place in the list."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec

from tts_kernels.checks import a_type

from ..errors import OutOfPagesError, PromptTooLongError, StaleKVError, StrategyError
from .model_calls import SearchStoppedError
from .option_kinds import check_kinds
from .result import SearchResult
from .run import SearchRun

if TYPE_CHECKING:
    from ..core.interfaces import Branch

Options = ParamSpec("Options")
Body = Callable[Concatenate[SearchRun, Options], Coroutine[Any, Any, SearchResult]]

_KINDS: dict[str, type] = {f"{kind.__name__} | None": kind for kind in (bool, int, float, str)}

STRATEGIES: dict[str, Strategy[...]] = {}
"""Every strategy by name, in the order of their families."""


class Strategy(Generic[Options]):
    """`await strategy(root, **options)` searches from a root; made by the decorator `strategy`.

    Attributes:
        name: of the function. summary: one line on what it does.
        family: the folder under `search/` that it is in; "own" for strategies of others.
        body: the function itself, over a `SearchRun`; another strategy calls it to continue in its own run.
    """

    def __init__(self, body: Body[Options], summary: str) -> None:
        self.name = body.__name__
        self.summary = summary
        module = body.__module__.split(".")
        self.family = module[-2] if module[:2] == ["tts_decode", "search"] else "own"
        self.body = body
        self.__doc__ = body.__doc__

    async def __call__(
        self, root: Branch | SearchRun, *args: Options.args, **options: Options.kwargs
    ) -> SearchResult:
        """Searches from `root`, which stays the caller's. Nothing that the search forked outlives it.

        A root that is finished, or whose budget is used up, is its own answer. A search ends with what it
        has, and `stopped` says why, if the model has no position left for a prompt, a forced text or any
        answer, if KV pages run out, or if a scorer fails.

        Args:
            root: a branch, or a `SearchRun` made of one, which says how the search is recorded and limited.
            options: those of the function; see `help(strategy.body)`.

        Raises:
            StaleKVError: the model's weights changed while the search ran.
            StrategyError: a TypeError; the function has no such option or lacks one, and nothing was
                searched; or its return value is no result.
        """
        self.check_options(options)
        try:
            inspect.signature(self.body).bind(None, *args, **options)
        except TypeError as error:
            raise StrategyError(
                f"{self.name}: got {self.name}{inspect.signature(self.body)}, which does not take what it is "
                f"called with, a SearchRun and {', '.join(options) or 'no option'}: {error}"
            ) from None
        run = root if isinstance(root, SearchRun) else SearchRun(root)
        with run.of(self.name, options):
            try:
                run.check_room()
                if run.root.finished or run.over:
                    return await run.result()
                made: object = self.body(run, *args, **options)
                result = await made if isinstance(made, Awaitable) else made
            except (SearchStoppedError, PromptTooLongError, OutOfPagesError) as stop:
                run.stop(stop)
                result = await run.result()
            if not isinstance(result, SearchResult):
                if inspect.iscoroutine(result):
                    result.close()
                raise StrategyError(
                    f"{self.name}: got {_described(result)} from the strategy, expected a SearchResult; "
                    "write it as async def and end it with `return await run.result()`"
                )
            if run.root.stale:
                raise StaleKVError(
                    f"{self.name}: the model's weights changed while it searched; search again from a new "
                    "root, or from this one after root.recompute()"
                )
            return result

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of `body`."""
        parameters = inspect.signature(self.body).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def size(self) -> str:
        """Name of the option that sets how much is searched, by convention the first: `n` for most."""
        return next(iter(self.parameters), "n")

    @property
    def options(self) -> dict[str, object]:
        """Options that are plain numbers, strings or truth values, with their defaults."""
        return {
            name: p.default
            for name, p in self.parameters.items()
            if isinstance(p.default, (int, float, str, bool))
        }

    @property
    def plain_options(self) -> dict[str, tuple[type, object]]:
        """Options that text can express, by name: type and default, None if there is no default."""
        found: dict[str, tuple[type, object]] = {}
        for name, parameter in self.parameters.items():
            if isinstance(parameter.default, (bool, int, float, str)):
                found[name] = type(parameter.default), parameter.default
            elif parameter.default is None and (kind := _KINDS.get(str(parameter.annotation))):
                found[name] = kind, None
        return found

    @property
    def needs_scorer(self) -> bool:
        scorer = self.parameters.get("scorer")
        return scorer is not None and scorer.default is inspect.Parameter.empty

    def check_options(self, options: Mapping[str, object]) -> None:
        """Checks whether these may be options of the strategy, before anything is searched.

        Ranges of numbers, names of choices and combinations are left to the search. For your own strategy
        only the names are checked.

        Raises:
            StrategyError: there is no such option.
            TypeError, ValueError: an option is of another kind, or a prompt has other fields.
        """
        parameters = inspect.signature(self.body).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return
        for name in options:
            if name not in parameters:
                raise StrategyError(f"{self.name}: unknown option {name!r}; {nearest(name, self.parameters)}")
        if self.family != "own":
            check_kinds(parameters, options)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickles listed strategies by name, strategies of others with their code."""
        if self.family != "own" and STRATEGIES.get(self.name) is self:
            return listed, (self.name,)
        return super().__reduce__()

    def __repr__(self) -> str:
        return f"<strategy {self.name}: {self.summary}>"


def _described(result: object) -> str:
    if result is None:
        return "None"
    if inspect.iscoroutine(result):
        return f"the coroutine {result.__name__}(), which was not awaited,"
    return a_type(result)


def strategy(summary: str) -> Callable[[Body[Options]], Strategy[Options]]:
    """Decorator: makes a `Strategy` of an async function over a `SearchRun` and lists it in `STRATEGIES`."""

    def make(body: Body[Options]) -> Strategy[Options]:
        made = Strategy(body, summary)
        known = STRATEGIES.get(made.name)
        if known is not None and known.body.__module__ != body.__module__:
            raise ValueError(
                f"a strategy called {made.name!r} is defined in {known.body.__module__} already: choose "
                "another name"
            )
        STRATEGIES[made.name] = made
        return made

    return make


def listed(name: str) -> Strategy[...]:
    """Returns the strategy of that name."""
    return STRATEGIES[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns, for an error message, the known names most like an unknown one, or all if none is like it."""
    names = list(known)
    close = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(names)}"


def get_strategy(name: str) -> Strategy[...]:
    """Returns the strategy called `name`; raises ValueError that lists the known ones if there is none."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
