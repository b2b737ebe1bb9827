"""The text of a branch that a reward model reads, and the readers, models and texts that it refuses."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from reward_cases import SEQUENCE, TOKEN, Answer, decoder_of
from tiny_models import byte_tokenizer, tiny_model
from torch import nn
from tts_decode.core.prompts import question_in
from tts_decode.rewards import (
    ClassHead,
    Reader,
    Reading,
    RewardModel,
    TagTemplate,
    TokenSoftmax,
    ValueHead,
    VocabularyMean,
)
from tts_decode.rewards.reward_model import step_texts

pytestmark = pytest.mark.usefixtures("one_thread")

# -- texts


def test_step_texts_keep_the_whole_text() -> None:
    answer = Answer(["first\n", "", "\n", "second"])
    assert step_texts(answer) == ["first\n\n", "second"]
    assert step_texts(Answer(["\n", "one"])) == ["\none"]
    assert step_texts(Answer([])) == [""]

    class Forced(Answer):
        text = "forced first\nWait, second done"

    assert step_texts(Forced(["first\n", "second"])) == ["forced first\n", "Wait, second", " done"]

    class Split(Answer):
        text = "caf\u00e9 au lait"

    assert step_texts(Split(["caf\ufffd", "\ufffd au lait"])) == ["caf", "\u00e9 au lait"]


def test_questions_of_prompts() -> None:
    assert question_in("2 + 3") == "2 + 3"
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "3"},
    ]
    assert question_in(chat) == "2"
    decoder = decoder_of(tiny_model(), byte_tokenizer())

    async def asked() -> str:
        branch = await decoder.root(list(b"4 + 5"))
        (child,) = branch.fork()
        return child.question

    assert decoder.run(asked()) == "4 + 5"


# -- bad input


TAG = TagTemplate("{question}", "{step} ки", tag="ки")


@pytest.mark.parametrize(
    ("reader", "tags", "options", "error", "message"),
    [
        ("math_shepherd", (), {}, ValueError, "'ки' is 4 tokens .* expected one"),
        ("er_prm", (" ки",), {}, ValueError, r"' \+' is 2 tokens"),
        ("qwen2.5_math_prm", ("<extra_0>",), {}, TypeError, "LlamaForCausalLM has no head named score"),
        ("rlhflow", (), {}, ValueError, "has no chat template"),
        ("outcome", (), {"auto": SEQUENCE, "num_labels": 1}, ValueError, "has no chat template"),
        ("math_shepherd", ("ки",), {"auto": SEQUENCE}, TypeError, "has no LM head.*AutoModelForCausalLM"),
        (
            Reader("r", TAG, ClassHead(2)),
            ("ки",),
            {"auto": TOKEN},
            ValueError,
            r"index: got 2, expected 0..1",
        ),
        (Reader("r", TAG, ValueHead()), ("ки",), {"auto": TOKEN}, ValueError, "2 outputs, expected a value"),
        (
            Reader("r", TAG, ClassHead(0)),
            ("ки",),
            {"head": nn.Linear(32, 2)},
            ValueError,
            "takes 32 features",
        ),
        (Reader("r", TAG, ClassHead(0)), ("ки",), {"head": nn.ReLU()}, ValueError, "takes None features"),
        (Reader("r", TAG, TokenSoftmax(("+",), 1)), ("ки",), {}, ValueError, r"index: got 1, expected 0..0"),
        (Reader("r", TAG, VocabularyMean()), ("ки",), {"family": "gemma2"}, ValueError, "caps its logits"),
        (
            "shepherd",
            (),
            {},
            ValueError,
            "reader: got 'shepherd', expected a Reader or one of math_shepherd, ",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(
    reader: Any, tags: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    head = options.pop("head", None)
    decoder = decoder_of(tiny_model(**options), byte_tokenizer(*tags))
    with pytest.raises(error, match=message):
        RewardModel(decoder, reader, head=head)
    assert decoder.stats().branches == 0


def test_bad_scores_and_texts_name_the_branch() -> None:
    decoder = decoder_of(tiny_model(), byte_tokenizer("ки"))
    nan = Reader("broken", TAG, lambda states: torch.full((len(states),), math.nan))
    with pytest.raises(ValueError, match="reader broken gave step 1 of branch 7 the score nan"):
        decoder.run(RewardModel(decoder, nan)([Answer(["a"])]))
    shaped = Reader("shaped", TAG, lambda states: states[:, -1])
    with pytest.raises(ValueError, match=r"reader shaped: its read-out made \[1, 64\] of \[1, 1, 64\]"):
        decoder.run(RewardModel(decoder, shaped)([Answer(["a"])]))
    long = Answer(["word " * 200])
    with pytest.raises(ValueError, match=r"branch 7 is 10.. tokens of the reward model, which allows 512"):
        decoder.run(RewardModel(decoder, "math_shepherd")([long]))
    outside = Reader("outside", lambda *_: Reading([1, 2], [(2,)]), ValueHead())
    with pytest.raises(ValueError, match=r"reader outside: its template gave the positions \[\(2,\)\]"):
        decoder.run(RewardModel(decoder, outside, head=nn.Linear(64, 1))([Answer(["a"])]))
    gc.collect()
    assert decoder.stats().resident_bytes == 0


def test_a_tag_that_merges_is_an_error() -> None:
    tokenizer = byte_tokenizer("ки", "ки\n")
    decoder = decoder_of(tiny_model(), tokenizer)
    with pytest.raises(ValueError, match="the tag 'ки' stands 0 times in a text of 1 steps"):
        RewardModel(decoder, "math_shepherd")
