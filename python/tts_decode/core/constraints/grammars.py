"""Constraints by a JSON schema, a regular expression, a grammar or a list of texts.

They are data; `start` needs the package llguidance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tts_kernels.checks import flag, instance, shown

from ...extras import require
from .protocol import Constraint, ConstraintState


@dataclass(frozen=True)
class JSONSchema:
    """JSON that is valid under a schema.

    Args:
        schema: a mapping, or its JSON text, which is how it is kept. `{}` allows any JSON. Keywords that
            llguidance does not know are refused at `start`.
        whitespace: whether blanks and line breaks may stand between tokens of JSON.
    """

    schema: str | Mapping[str, Any]
    whitespace: bool = True

    def __post_init__(self) -> None:
        schema = self.schema
        if not isinstance(schema, (str, Mapping)):
            raise TypeError(f"schema: got {shown(schema)}, expected a mapping or a JSON text")
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as cause:
            raise ValueError(f"schema: got {shown(schema)}, expected JSON ({cause})") from cause
        if not isinstance(parsed, Mapping):
            raise ValueError(f"schema: got {shown(schema)}, expected a JSON object")
        object.__setattr__(self, "schema", text)
        flag("whitespace", self.whitespace)

    def start(self, tokenizer: Any) -> ConstraintState:
        matcher = _matcher()
        state: ConstraintState = matcher.start(
            matcher.json_grammar(str(self.schema), self.whitespace), tokenizer, "schema"
        )
        return state


@dataclass(frozen=True)
class Regex:
    """Text of which all matches a regular expression, in the syntax of Rust's crate `regex`."""

    pattern: str

    def __post_init__(self) -> None:
        instance("pattern", self.pattern, str)

    def start(self, tokenizer: Any) -> ConstraintState:
        matcher = _matcher()
        state: ConstraintState = matcher.start(matcher.regex_grammar(self.pattern), tokenizer, "pattern")
        return state


@dataclass(frozen=True)
class Grammar:
    """Text that a context-free grammar derives: GBNF, as llama.cpp's (`root ::= "a" | "b" root`), or Lark's
    notation (`start: "a" | "b" start`)."""

    text: str

    def __post_init__(self) -> None:
        instance("text", self.text, str)

    def start(self, tokenizer: Any) -> ConstraintState:
        matcher = _matcher()
        state: ConstraintState = matcher.start(matcher.grammar(self.text), tokenizer, "grammar")
        return state


@dataclass(frozen=True)
class Choice:
    """One of some texts; kept as a tuple."""

    options: Sequence[str]

    def __post_init__(self) -> None:
        options = self.options
        if isinstance(options, str) or not isinstance(options, Sequence) or not options:
            raise TypeError(f"options: got {shown(options)}, expected a list of texts")
        for i, option in enumerate(options):
            if not isinstance(option, str) or not option:
                raise ValueError(f"options[{i}]: got {shown(option)}, expected a text that is not empty")
        object.__setattr__(self, "options", tuple(options))

    def start(self, tokenizer: Any) -> ConstraintState:
        matcher = _matcher()
        state: ConstraintState = matcher.start(matcher.choice_grammar(self.options), tokenizer, "options")
        return state


_KINDS: dict[str, type[JSONSchema | Regex | Grammar | Choice]] = {
    "json_schema": JSONSchema,
    "regex": Regex,
    "grammar": Grammar,
    "choice": Choice,
}


def constraint_data(constraint: Constraint) -> dict[str, Any]:
    """Values that JSON holds, for `constraint_of`; ValueError for a class that is none of these."""
    for kind, its_class in _KINDS.items():
        if type(constraint) is its_class:
            return {"kind": kind, **asdict(constraint)}
    raise ValueError(
        f"constraint: got a {type(constraint).__name__}, expected one of "
        f"{', '.join(its_class.__name__ for its_class in _KINDS.values())}; no other can be written to a file"
    )


def constraint_of(data: object) -> Constraint:
    """ValueError or TypeError where it is no `constraint_data`."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"constraint: got {shown(data)}, expected an object of kind {', '.join(_KINDS)}")
    return _KINDS[kind](**{name: value for name, value in data.items() if name != "kind"})


def _matcher() -> Any:
    require("llguidance")
    from . import matcher

    return matcher
