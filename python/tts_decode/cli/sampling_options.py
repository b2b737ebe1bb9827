"""Options of sampling: a flag for each field of `SamplingParams`, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..core.constraints.grammars import Choice, Grammar, JSONSchema, Regex
from ..core.constraints.protocol import Constraint
from ..core.stop_when import READY
from . import completion
from .errors import UsageError

_SAMPLING, _LIMITS = "Sampling", "Limits"

Temperature = Annotated[
    float, typer.Option(help="0 takes the most probable token.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[
    int, typer.Option(help="Draw among the N most probable tokens; 0: all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        help="Draw among the most probable tokens that reach this mass; 1: all.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Draw among tokens at least this share as probable as the best; 0: all.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        help="Above 1: makes tokens of the prompt and the answer less probable.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        help="-2 to 2: off a token's logit for each time that the answer has it.", rich_help_panel=_SAMPLING
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(help="-2 to 2: off the logit of each token of the answer.", rich_help_panel=_SAMPLING),
]
LogitBias = Annotated[
    list[str],
    typer.Option(
        metavar="ID=BIAS",
        help="-100 to 100, added to a token's logit; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
Suppress = Annotated[
    list[int],
    typer.Option(
        metavar="ID", help="A token that is never drawn; may be repeated.", rich_help_panel=_SAMPLING
    ),
]
Stop = Annotated[
    list[str],
    typer.Option(
        help="Text that ends a step of the search; \\n is a line break; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
StopToken = Annotated[
    list[int],
    typer.Option(
        metavar="ID",
        help="A token that ends a step of the search; may be repeated.",
        rich_help_panel=_SAMPLING,
    ),
]
StopWhenName = Annotated[
    str | None,
    typer.Option(
        "--stop-when",
        metavar="NAME",
        help=f"What ends an answer: {' or '.join(READY)}, a whole \\boxed{{}} or JSON object.",
        show_default=False,
        rich_help_panel=_SAMPLING,
        autocompletion=completion.stop_when,
    ),
]
JSONSchemaFile = Annotated[
    Path | None,
    typer.Option(
        "--json-schema",
        metavar="FILE",
        help="File of a JSON schema that answers have to match.",
        rich_help_panel=_SAMPLING,
    ),
]
RegexOption = Annotated[
    str | None,
    typer.Option(
        "--regex",
        metavar="PATTERN",
        help="Regular expression that answers have to match.",
        rich_help_panel=_SAMPLING,
    ),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="File of a grammar, GBNF or Lark, of all answers.",
        rich_help_panel=_SAMPLING,
    ),
]
Choices = Annotated[
    list[str],
    typer.Option(
        "--choice",
        help="A text that may be the answer; given several times, one of them is.",
        rich_help_panel=_SAMPLING,
    ),
]
TopLogprobs = Annotated[
    int,
    typer.Option(
        help="Most probable tokens that each step lists, for a scorer or strategy of FILE.py:NAME.",
        rich_help_panel=_SAMPLING,
    ),
]
SelfCertainty = Annotated[
    bool,
    typer.Option(
        "--self-certainty",
        help="Each step tells its tokens' self-certainty, for a scorer or strategy of FILE.py:NAME.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same text.", rich_help_panel=_SAMPLING)]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Longest answer, in tokens. Default: 256; 64 to the default problems.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
MaxStepTokens = Annotated[
    int | None,
    typer.Option(
        help="Longest step, in tokens. Default: 64; 32 to the default problems.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]


def constraint(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choices: Sequence[str] = ()
) -> Constraint | None:
    """What --json-schema, --regex, --grammar or --choice says."""
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
    except (OSError, ValueError) as error:
        raise UsageError(f"{flags[0]}: {error}") from None
    if choices:
        return Choice(choices)
    return None if regex is None else Regex(regex)


def parse_bias(pairs: Sequence[str]) -> dict[int, float]:
    """Of --logit-bias: ID=BIAS."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise UsageError(f"--logit-bias: got {pair!r}, expected ID=BIAS, such as 17=-100") from None
    return biases


def unescape(text: str) -> str:
    r"""Turns the two characters \n into a line break, and \t into a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
