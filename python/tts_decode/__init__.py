"""Decoding API over search trees: branches, strategies, scorers.

Names are imported when they are first used. Importing torch and transformers takes seconds, and
`OpenAICompletions` needs no transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tts_decode.extras import MissingExtraError, explained
from tts_decode.version import package_version

if TYPE_CHECKING:
    __version__: str

    from tts_decode.ask_tell import AskTell, LogprobRequest, RequestWithdrawn, ScoreRequest
    from tts_decode.branch import Branch
    from tts_decode.budget import Budget
    from tts_decode.decoder import TreeDecoder
    from tts_decode.engines.completion import Completion, CompletionRequest
    from tts_decode.engines.openai import OpenAICompletions
    from tts_decode.engines.text import TextDecoder
    from tts_decode.errors import (
        BranchReleased,
        EngineError,
        JournalError,
        ModelLoadError,
        OutOfPages,
        PromptTooLong,
        ResultFileError,
        ScorerError,
        StaleKV,
        UnsupportedByEngine,
        UnsupportedModel,
    )
    from tts_decode.kv_budget import KVBudget, Pin
    from tts_decode.running import gather
    from tts_decode.sampling import SamplingParams
    from tts_decode.sparse import SparseConfig
    from tts_decode.state import BranchState
    from tts_decode.stats import DecoderStats
    from tts_decode.steps import Step

__all__ = [
    "AskTell",
    "Branch",
    "BranchReleased",
    "BranchState",
    "Budget",
    "Completion",
    "CompletionRequest",
    "DecoderStats",
    "EngineError",
    "JournalError",
    "KVBudget",
    "LogprobRequest",
    "MissingExtraError",
    "ModelLoadError",
    "OpenAICompletions",
    "OutOfPages",
    "Pin",
    "PromptTooLong",
    "RequestWithdrawn",
    "ResultFileError",
    "SamplingParams",
    "ScoreRequest",
    "ScorerError",
    "SparseConfig",
    "StaleKV",
    "Step",
    "TextDecoder",
    "TreeDecoder",
    "UnsupportedByEngine",
    "UnsupportedModel",
    "__version__",
    "gather",
]

_MODULES = {
    "ask_tell": ("AskTell", "LogprobRequest", "RequestWithdrawn", "ScoreRequest"),
    "branch": ("Branch",),
    "budget": ("Budget",),
    "decoder": ("TreeDecoder",),
    "engines.completion": ("Completion", "CompletionRequest"),
    "engines.openai": ("OpenAICompletions",),
    "engines.text": ("TextDecoder",),
    "errors": (
        "BranchReleased",
        "EngineError",
        "JournalError",
        "ModelLoadError",
        "OutOfPages",
        "PromptTooLong",
        "ResultFileError",
        "ScorerError",
        "StaleKV",
        "UnsupportedByEngine",
        "UnsupportedModel",
    ),
    "kv_budget": ("KVBudget", "Pin"),
    "running": ("gather",),
    "sampling": ("SamplingParams",),
    "sparse": ("SparseConfig",),
    "state": ("BranchState",),
    "stats": ("DecoderStats",),
    "steps": ("Step",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return package_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as missing:
        raise explained(missing) from missing
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
