"""Tokenizers of GGUF files give the ids of the tokenizers that were written, on any text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from gguf_vocabularies import BYTES, CONTROL, CORPUS, USER_DEFINED, keys_of, read, sentencepiece_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def by_pattern(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# As the models' own tokenizers have them; patterns are those that transformers knows.
SPLITS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: BYTE_LEVEL,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "falcon": lambda: pre_tokenizers.Sequence(
        [
            # Punctuation("contiguous"), of a version of Unicode that has all of today's signs
            pre_tokenizers.Split(Regex(r"[\p{P}$+<=>^~|`]+"), "isolated"),
            BYTE_LEVEL,
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    ),
    **{
        name: lambda name=name: by_pattern(GGUF_PRE_TOKENIZER_SPLITS[name])
        for name in ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")
    },
}
WHOLE_WORDS = ("llama-bpe", "tekken")
CONTROLS, ADDED = ["<|end|>", "<|begin_of_text|>", "<|endoftext|>"], ["<think>", "  ", "<tag>!"]


@cache
def trained(name: str) -> tuple[Tokenizer, Any]:
    """A tokenizer, and the one that is read of its file's keys."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in WHOLE_WORDS))
    tokenizer.pre_tokenizer = SPLITS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(CONTROLS)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    return tokenizer, read(keys_of(tokenizer, name, add_bos_token=False))


ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])  # what is not, versions of Unicode differ in
TEXTS = st.lists(
    st.one_of(
        st.text(ASSIGNED, max_size=12),
        st.text("ab'sT1 2\n\t.é日\u0301", max_size=12),
        st.sampled_from([*CONTROLS, *ADDED, "'LL", "1234567", "\r\n", "   ", "HelloWorld", "+=`"]),
        st.sampled_from(CORPUS).flatmap(lambda text: st.integers(0, 60).map(lambda i: text[i : i + 30])),
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=150)
@given(text=TEXTS)
def test_byte_level(name: str, text: str) -> None:
    original, tokenizer = trained(name)
    ids = original.encode(text).ids
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == original.decode(ids)


@pytest.mark.parametrize("name", SPLITS)
def test_special_tokens_can_be_left_in_text(name: str) -> None:
    """Added tokens are read whole all the same."""
    original, tokenizer = trained(name)
    original.encode_special_tokens = True
    try:
        for text in ("a<|end|>b <think> <|endoftext|>", "<|begin_of_text|>"):
            ids = original.encode(text).ids
            assert tokenizer(text, split_special_tokens=True).input_ids == ids
            assert not set(ids) & {original.token_to_id(control) for control in CONTROLS}
    finally:
        original.encode_special_tokens = False


def joined_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """What llama.cpp does to a text without special tokens. Of all neighbours whose joined text is a token,
    those of the highest score are joined, the leftmost of equals. What is no token then becomes bytes."""
    pieces = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (-scores[left + right], i)
            for i, (left, right) in enumerate(pairwise(pieces))
            if left + right in scores
        ]
        if not pairs:
            break
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [
        token
        for piece in pieces
        for token in ([piece] if piece in scores else [BYTES[byte] for byte in piece.encode()])
    ]


@cache
def sentencepieces() -> dict[str, float]:
    """Trained pieces in the order of their merges, as SentencePiece scores them, and then their letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    vocab = tokenizer.get_vocab()
    merged = sorted((text for text in vocab if len(text) > 1), key=vocab.__getitem__)
    letters = sorted(text for text in vocab if len(text) == 1)
    return {text: -float(i) for i, text in enumerate([*merged, *letters])}


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=300)
@given(text=TEXTS.filter(lambda text: not any(special in text for special in ("<s>", "</s>", "<unk>"))))
def test_sentencepiece(prefix: bool, text: str) -> None:
    tokenizer = sentencepiece(prefix)
    first = " " if prefix and text else ""
    expected = ["<s>", *joined_by_score(first + text, sentencepieces())]
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == expected
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text.replace("▁", " ")


@cache
def sentencepiece(prefix: bool) -> Any:
    return read(sentencepiece_keys(sentencepieces(), add_space_prefix=prefix))


@settings(max_examples=200)
@given(data=st.data())
def test_any_scores(data: st.DataObject) -> None:
    """Vocabularies over two letters, whose pieces need not be joined in the order of their lengths."""
    pieces = data.draw(st.lists(st.text("ab", min_size=2, max_size=4), unique=True, max_size=10))
    order = data.draw(st.permutations(pieces))
    scores = {"▁": -90.0, "a": -91.0, "b": -92.0} | {piece: -float(i) for i, piece in enumerate(order)}
    tokenizer = read(sentencepiece_keys(scores, add_space_prefix=False, add_bos_token=False))
    text = data.draw(st.text("ab ", max_size=20))
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == joined_by_score(text, scores)


def test_tokens_between_sentencepieces() -> None:
    """A space stands before each text between tokens that are read whole; runs of spaces are such tokens."""
    pieces = {"▁": -1.0, "a": -2.0, "▁a": -0.5, "  ": 0.0, "<tag>": 0.0, "<|im_end|>": 0.0}
    types = {"  ": USER_DEFINED, "<tag>": USER_DEFINED, "<|im_end|>": CONTROL}
    tokenizer = read(sentencepiece_keys(pieces, types))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a  a<tag>a<|im_end|> a").input_ids)
    assert tokens == ["<s>", "▁a", "  ", "▁a", "<tag>", "▁a", "<|im_end|>", "▁", "▁a"]
    left = tokenizer.convert_ids_to_tokens(tokenizer("<tag><s>", split_special_tokens=True).input_ids)
    assert left == ["<s>", "<tag>", "▁", "<0x3C>", "<0x73>", "<0x3E>"]
    plain = read(sentencepiece_keys(pieces, types, add_space_prefix=False))
    assert plain.convert_ids_to_tokens(plain("a  a").input_ids) == ["<s>", "a", "  ", "a"]


def test_special_tokens_of_phi_3_take_the_spaces_behind_them() -> None:
    pieces = {"▁": -1.0, "a": -2.0, "\n": -3.0, "<|user|>": 0.0, "<|endoftext|>": 0.0}
    types = {"<|user|>": CONTROL, "<|endoftext|>": CONTROL}
    for name, expected in (
        ("Phi-3-mini", ["<|user|>", "a", "<|endoftext|>", "\n", "a"]),
        ("Phi 4", ["<|user|>", "\n", "a", "<|endoftext|>", "\n", "a"]),
    ):
        keys = sentencepiece_keys(pieces, types, add_space_prefix=False, add_bos_token=False)
        tokenizer = read({**keys, "general.name": name})
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("<|user|>\na<|endoftext|>\na").input_ids)
        assert tokens == expected


def test_letters_without_bytes_are_the_unknown_token() -> None:
    keys = sentencepiece_keys({"▁": -1.0, "a": -2.0})
    tokens = [token for token in keys["tokenizer.ggml.tokens"] if token not in BYTES]
    short = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
    }
    tokenizer = read({**keys, **short})
    assert tokenizer.convert_ids_to_tokens(tokenizer("aé").input_ids) == ["<s>", "▁", "a", "<unk>"]
