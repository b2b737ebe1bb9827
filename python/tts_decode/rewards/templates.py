"""How a reward model wants a question and the steps of an answer written, and its read positions.

A template returns the token ids of the whole text, tokenised as by the model's authors, and for each step the
positions at which the model's hidden states are read. Ids end at the last of these positions: the model is
causal, so what follows changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Positions = tuple[int, ...]
"""The positions at which one step is read: indices into the ids of the whole text, ascending."""


class Reading(NamedTuple):
    """What a reward model reads of a text, and where its scores are.

    Attributes:
        ids: token ids of the whole text; they may end at the last position.
        positions: for each step the positions that are read, all of one length.
    """

    ids: list[int]
    positions: Sequence[Positions]


Template = Callable[[Any, str, Sequence[str]], Reading]
"""Maps (tokenizer, question, steps), with at least one step, to a `Reading`.

Raises ValueError when the tokenizer lacks what the template needs.
"""

_PLACEHOLDER = "\ue000"  # in Unicode's private use area: replaces a label while its position is found


@dataclass(frozen=True)
class TagTemplate:
    """Plain text with a tag after each step, at which the model is read.

    Args:
        question: format of the text before the first step; `{question}`.
        step: format of each step, including the tag; `{step}` and `{number}`, from 1.
        tag: text of the tag, one token of the model. It is removed from questions and steps.
        clean: applied to each step first.
        special_tokens: whether the tokenizer adds its own, such as a token for the beginning.
    """

    question: str
    step: str
    tag: str
    clean: Callable[[str], str] = str.strip
    special_tokens: bool = True

    def __call__(self, tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
        tag = single_token(tokenizer, self.tag)
        text = self.question.format(question=_without(question, self.tag).strip())
        for number, step in enumerate(steps, start=1):
            text += self.step.format(step=self.clean(_without(step, self.tag)), number=number)
        ids = _encode(tokenizer, text, special_tokens=self.special_tokens)
        return _read_at_tags(ids, tag, self.tag, len(steps))


@dataclass(frozen=True)
class ChatTagTemplate:
    """The model's chat template; the answer is its steps with a tag after each, at which the model is read.

    Args:
        tag: text of the tag, one token of the model. It is removed from questions and steps.
        system: the system message, if any.
    """

    tag: str
    system: str | None = None

    def __call__(self, tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
        tag = single_token(tokenizer, self.tag)
        answer = "".join(_without(step, self.tag).strip() + self.tag for step in steps)
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages += [
            {"role": "user", "content": _without(question, self.tag).strip()},
            {"role": "assistant", "content": answer},
        ]
        ids = _encode(tokenizer, chat_text(tokenizer, messages), special_tokens=False)
        return _read_at_tags(ids, tag, self.tag, len(steps))


@dataclass(frozen=True)
class TurnTemplate:
    """A chat in which each step is the user's turn and the assistant answers with a label.

    The model is read where it is about to write the label; the labels of earlier steps are all `label`.

    Args:
        label: text of the label, one token of the model.
        first: format of the user's first turn; `{question}` and `{step}`.
    """

    label: str
    first: str = "{question} {step}"

    def __call__(self, tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
        label = single_token(tokenizer, self.label)
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer: {type(tokenizer).__name__} cannot say which token a character is in; this "
                "reader needs a fast tokenizer (with a tokenizer.json)"
            )
        messages = []
        for i, step in enumerate(steps):
            text = _without(step, _PLACEHOLDER).strip()
            if i == 0:
                text = self.first.format(question=_without(question, _PLACEHOLDER).strip(), step=text)
            messages += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": _PLACEHOLDER},
            ]
        before, *rest = chat_text(tokenizer, messages).split(_PLACEHOLDER)
        text, starts = before, []
        for part in rest:
            starts.append(len(text))
            text += self.label + part
        encoding = tokenizer(text, add_special_tokens=False)
        ids: list[int] = list(encoding["input_ids"])
        tokens = [encoding.char_to_token(start) for start in starts]
        if len(tokens) != len(steps) or any(token is None or ids[token] != label for token in tokens):
            raise ValueError(
                f"tokenizer: its chat template does not keep the label {self.label!r} of an assistant's turn "
                "a token of its own; this reader is for another model"
            )
        positions = [(token - 1,) for token in tokens]
        return Reading(ids[: positions[-1][0] + 1], positions)


@dataclass(frozen=True)
class PieceTemplate:
    """Question and steps, tokenised separately, each followed by a separator; read at the steps' separators.

    Args:
        separator: one token of the model. It is removed from steps.
    """

    separator: str = "\n"

    def __call__(self, tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
        separator = single_token(tokenizer, self.separator)
        begin = tokenizer.bos_token or ""
        ids = _encode(tokenizer, begin + question.strip() + self.separator, special_tokens=False)
        positions = []
        for step in steps:
            text = _without(step, self.separator, " ").strip()
            ids += _encode(tokenizer, text, special_tokens=False)
            positions.append((len(ids),))
            ids.append(separator)
        return Reading(ids, positions)


@dataclass(frozen=True)
class OutcomeTemplate:
    """A chat of the question and the whole answer, read once, at its last token.

    The last token is the last that is not padding, as transformers' sequence classifiers take it. Steps are
    joined unchanged, so there is one score, whatever the number of steps.
    """

    def __call__(self, tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(steps)},
        ]
        ids = _encode(tokenizer, chat_text(tokenizer, messages), special_tokens=False)
        while len(ids) > 1 and ids[-1] == tokenizer.pad_token_id:
            ids.pop()
        return Reading(ids, [(len(ids) - 1,)])


def without_step_number(step: str) -> str:
    """Returns the step without a heading such as `Step 3:`."""
    head, colon, rest = step.strip().partition(":")
    word, _, number = head.partition(" ")
    return rest.strip() if colon and word == "Step" and number.strip().isdigit() else step.strip()


def single_token(tokenizer: Any, text: str) -> int:
    """Returns the id of the one token that `text` is; raises ValueError if the tokenizer has none."""
    ids = _encode(tokenizer, text, special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"tokenizer: {text!r} is {len(ids)} tokens ({ids}) of {type(tokenizer).__name__}, expected one: "
            "this reader is for another model, or its tokenizer was saved without the tag"
        )
    return ids[0]


def chat_text(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Returns the chat as text; raises ValueError if the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} has no chat template, which this reader needs; set "
            "tokenizer.chat_template to the one that the reward model was trained with"
        )
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


def _encode(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    return ids


def _without(text: str, tag: str, instead: str = "") -> str:
    """Returns `text` without the tag, including tags that appear when others are removed."""
    while tag in text:
        text = text.replace(tag, instead)
    return text


def _read_at_tags(ids: list[int], tag: int, text: str, steps: int) -> Reading:
    positions = [(i,) for i, token in enumerate(ids) if token == tag]
    if len(positions) != steps:
        raise ValueError(
            f"tokenizer: the token of the tag {text!r} stands {len(positions)} times in a text of {steps} "
            "steps, expected one for each: the tag merges with its surroundings, or other text has its token"
        )
    return Reading(ids[: positions[-1][0] + 1], positions)
