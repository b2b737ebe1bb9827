"""Options of sampling: a flag for each field of `SamplingParams`, and the parsing of their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.constraints.grammars import Choice, Grammar, JSONSchema, Regex
from ..core.constraints.protocol import Constraint
from ..core.stop_when import READY
from . import completion
from .errors import UsageError

# Options in their groups of the help.
_sampling_option = partial(typer.Option, rich_help_panel="Sampling")
_limit_option = partial(typer.Option, rich_help_panel="Limits")

Temperature = Annotated[float, _sampling_option(help="0 takes the most probable token.")]
TopK = Annotated[int, _sampling_option(help="Draw among the N most probable tokens; 0: all.")]
TopP = Annotated[
    float,
    _sampling_option(help="Draw among the most probable tokens that reach this mass; 1: all."),
]
MinP = Annotated[
    float,
    _sampling_option(help="Draw among tokens at least this share as probable as the best; 0: all."),
]
RepetitionPenalty = Annotated[
    float,
    _sampling_option(help="Above 1: makes tokens of the prompt and the answer less probable."),
]
FrequencyPenalty = Annotated[
    float,
    _sampling_option(help="-2 to 2, subtracted from a token's logit for each time that the answer has it."),
]
PresencePenalty = Annotated[
    float,
    _sampling_option(help="-2 to 2, subtracted once from the logit of each token that the answer has."),
]
LogitBias = Annotated[
    list[str],
    _sampling_option(metavar="ID=BIAS", help="-100 to 100, added to a token's logit; may be repeated."),
]
Suppress = Annotated[
    list[int],
    _sampling_option(metavar="ID", help="A token that is never drawn; may be repeated."),
]
Stop = Annotated[
    list[str],
    _sampling_option(help="Text that ends a step of the search; \\n is a line break; may be repeated."),
]
StopToken = Annotated[
    list[int],
    _sampling_option(metavar="ID", help="A token that ends a step of the search; may be repeated."),
]
StopWhenName = Annotated[
    str | None,
    _sampling_option(
        "--stop-when",
        metavar="NAME",
        help=f"What ends an answer: {' or '.join(READY)}, a whole \\boxed{{}} or JSON object.",
        show_default=False,
        autocompletion=completion.stop_when,
    ),
]
JSONSchemaFile = Annotated[
    Path | None,
    _sampling_option(
        "--json-schema", metavar="FILE", help="File of a JSON schema that answers have to match."
    ),
]
RegexOption = Annotated[
    str | None,
    _sampling_option("--regex", metavar="PATTERN", help="Regular expression that answers have to match."),
]
GrammarFile = Annotated[
    Path | None,
    _sampling_option(
        "--grammar", metavar="FILE", help="File of a grammar, GBNF or Lark, that answers have to match."
    ),
]
Choices = Annotated[
    list[str],
    _sampling_option("--choice", help="One of the allowed answers; may be repeated."),
]
TopLogprobs = Annotated[
    int,
    _sampling_option(
        help="List the N most probable tokens at each token, for a scorer or strategy of FILE.py:NAME."
    ),
]
SelfCertainty = Annotated[
    bool,
    _sampling_option(
        "--self-certainty",
        help="Record each token's self-certainty, for a scorer or strategy of FILE.py:NAME.",
    ),
]
Seed = Annotated[int, _sampling_option(help="Same seed, same text.")]
MaxTokens = Annotated[
    int | None,
    _limit_option(
        help="Longest answer, in tokens. Default: 256; 64 for the default problems.", show_default=False
    ),
]
MaxStepTokens = Annotated[
    int | None,
    _limit_option(
        help="Longest step, in tokens. Default: 64; 32 for the default problems.", show_default=False
    ),
]


def constraint(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choices: Sequence[str] = ()
) -> Constraint | None:
    """Returns the constraint of --json-schema, --regex, --grammar or --choice."""
    given = {
        "--json-schema": json_schema,
        "--regex": regex,
        "--grammar": grammar,
        "--choice": choices or None,
    }
    flags = [flag for flag, value in given.items() if value is not None]
    if len(flags) > 1:
        raise UsageError(f"{flags[0]}: got {' and '.join(flags[1:])} too, expected one of them")
    try:
        if json_schema is not None:
            return JSONSchema(json_schema.read_text(encoding="utf-8"))
        if grammar is not None:
            return Grammar(grammar.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{flags[0]}: {error.filename} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{flags[0]}: {error}") from None
    if choices:
        return Choice(choices)
    return None if regex is None else Regex(regex)


def parse_bias(pairs: Sequence[str]) -> dict[int, float]:
    """Parses --logit-bias: ID=BIAS."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise UsageError(f"--logit-bias: got {pair!r}, expected ID=BIAS, such as 17=-100") from None
    return biases


def unescape(text: str) -> str:
    r"""Replaces the two characters \n by a line break, and \t by a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
