"""Text of steps and stop strings, against the bytes that tokens of every kind of vocabulary stand for."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny_model
from tiny_tokenizers import HOLE, VOCABULARIES, Vocabulary
from tokenizers import decoders
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from tts_decode import Branch, SamplingParams, TreeDecoder
from tts_decode.core.detokenizer import continuation, text_stream
from tts_decode.core.stop_finder import StopFinder

KINDS = {name: make() for name, make in VOCABULARIES.items()}
BYTES = [name for name, vocabulary in KINDS.items() if vocabulary.byte_ids]


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def stop_index(stop: list[str], text: str, context: str = "") -> int | None:
    finder = StopFinder(byte_tokenizer(), stop, bytes_of(context))
    for index, token in enumerate(bytes_of(text)):
        if finder.push(token):
            return index
    return None


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (["\n\n"], "one\ntwo\n\nthree", 8),
        (["\n\n"], "\n\n", 1),
        (["\n\n"], "one\ntwo\n", None),
        (["abab", "c"], "aababab", 4),
        (["\N{SNOWMAN}!"], "a\N{SNOWMAN}\N{SNOWMAN}!", 7),  # three bytes each
        (["\N{LATIN SMALL LETTER E WITH ACUTE}"], "caf\N{LATIN SMALL LETTER E WITH ACUTE}s", 4),
        (["x" * 40], "y" * 30 + "x" * 41, 69),  # longer than the token window
        (["."], "no stop at all", None),
    ],
)
def test_the_step_ends_with_the_completing_token(stop: list[str], text: str, expected: int | None) -> None:
    assert stop_index(stop, text) == expected


def test_text_before_the_step_does_not_count() -> None:
    assert stop_index(["\n\n"], "\nb", context="a\n") is None
    assert stop_index(["e\N{SNOWMAN}"], "\N{SNOWMAN}e\N{SNOWMAN}", context="e") == 6


def test_invalid_bytes_do_not_hide_a_stop() -> None:
    finder = StopFinder(byte_tokenizer(), ["END"], [])
    found = [finder.push(token) for token in [0xFF, 0xE2, 0x98, *b"END"]]
    assert found == [False] * 5 + [True]


@pytest.mark.parametrize("split", range(1, 9))
def test_pieces_of_text_join_up(split: int) -> None:
    tokens = bytes_of("a\N{SNOWMAN}b\N{LATIN SMALL LETTER E WITH ACUTE}c")
    texts = [
        continuation(byte_tokenizer(), tokens[:end], start) for start, end in ((0, split), (split, None))
    ]
    assert "".join(texts).encode() == bytes(tokens)
    assert "\ufffd" not in "".join(texts)


def test_special_tokens_are_left_out_of_text() -> None:
    tokens = [*b"ab", *b"cd", 256]
    assert continuation(byte_tokenizer(), tokens, 2) == "cd"
    assert continuation(byte_tokenizer(), tokens, 2, special=True) == "cd<eos>"


# -- every kind of vocabulary

TEXTS = st.text(st.sampled_from("ab E: \n\xe9\u2603\u65e5\u672c\U0001f600"), max_size=6)


@st.composite
def runs(draw: st.DrawFn, vocabulary: Vocabulary) -> list[int]:
    """Tokens at random, and characters spelled out in bytes."""
    tokens: list[int] = []
    for _ in range(draw(st.integers(0, 6))):
        if vocabulary.byte_ids and draw(st.booleans()):
            tokens += vocabulary.encode(draw(TEXTS))
        else:
            tokens += draw(st.lists(st.sampled_from(vocabulary.ids), max_size=5))
    return tokens


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=40)
def test_texts_are_those_of_the_bytes_wherever_they_are_cut(kind: str, data: st.DataObject) -> None:
    vocabulary = KINDS[kind]
    tokens = data.draw(runs(vocabulary))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    for special in (False, True):
        ends = [0, *cuts, len(tokens)]
        pieces = [
            continuation(vocabulary.tokenizer, tokens[:end], begin, special=special)
            for begin, end in pairwise(ends)
        ]
        assert "".join(pieces) == vocabulary.text(tokens, special)
        for (begin, end), piece in zip(pairwise(ends), pieces, strict=True):
            before = vocabulary.text(tokens[:begin], special)
            assert before + piece == vocabulary.text(tokens[:end], special)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=40)
def test_a_stop_string_is_found_with_the_token_that_completes_it(kind: str, data: st.DataObject) -> None:
    vocabulary = KINDS[kind]
    context, tokens = data.draw(runs(vocabulary)), data.draw(runs(vocabulary))
    before = len(vocabulary.text(context, special=True))
    texts = [vocabulary.text(context + tokens[: i + 1], special=True)[before:] for i in range(len(tokens))]
    stops = ["\n", "Answer: ", "\u65e5\u672c", " \u2603!"]
    for _ in range(data.draw(st.integers(0, 2)) if texts and texts[-1] else 0):
        begin = data.draw(st.integers(0, len(texts[-1]) - 1))
        stops.append(texts[-1][begin : begin + data.draw(st.integers(1, 12))])
    expected = [i for i, text in enumerate(texts) if any(stop in text for stop in stops)]
    finder = StopFinder(vocabulary.tokenizer, stops, context)
    found = next((i for i, token in enumerate(tokens) if finder.push(token)), None)
    assert found == (expected[0] if expected else None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_decodes_to_the_same_text(kind: str) -> None:
    """Where the bytes are characters, the tokenizer's own text is that: the truth is no invention."""
    vocabulary = KINDS[kind]
    rng = random.Random(0)
    valid = 0
    for _ in range(400):
        tokens = rng.choices([*vocabulary.behind, HOLE], k=rng.randint(1, 4))
        if vocabulary.byte_ids:
            tokens += vocabulary.encode(rng.choice(["\n", " \u65e5", "\U0001f600a"])) + rng.choices(
                tokens, k=2
            )
        for special in (False, True):
            text = vocabulary.text(tokens, special)
            if "\ufffd" in text or len(vocabulary.bytes(tokens, special)) != len(text.encode()):
                continue
            valid += 1
            known = [token for token in tokens if token != HOLE]
            assert vocabulary.tokenizer.decode(known, skip_special_tokens=not special) == text
            assert continuation(vocabulary.tokenizer, tokens, 0, special=special) == text
    assert valid > 20


@pytest.mark.parametrize("kind", ["llama2", "word_ends", "regex_behind", "slow"])
def test_long_texts_token_by_token(kind: str) -> None:
    """Also where the first tokens are dropped on the way, and in bytes throughout."""
    vocabulary = KINDS[kind]
    rng = random.Random(0)
    for long_run in (False, True):
        tokens: list[int] = []
        while len(tokens) < 250:
            if vocabulary.byte_ids and (long_run or rng.random() < 0.3):
                tokens += vocabulary.encode(rng.choice(["\u65e5", "\U0001f600", "E", " "]))
            else:
                tokens += rng.choices(vocabulary.ids, k=3)
        stream = text_stream(vocabulary.tokenizer, tokens[:90], special=True)
        text = vocabulary.text(tokens[:90], special=True)
        for end in range(91, len(tokens) + 1):
            text += stream.add(tokens[end - 1 : end])
            assert text == vocabulary.text(tokens[:end], special=True)


@pytest.mark.parametrize("kind", BYTES)
def test_a_newline_in_bytes_behind_a_prompt_in_bytes_stops(kind: str) -> None:
    vocabulary = KINDS[kind]
    finder = StopFinder(vocabulary.tokenizer, ["\n"], vocabulary.encode("prompt \u65e5\u672c\u8a9e"))
    tokens = vocabulary.encode("\u65e5a\u672c\n")
    assert [finder.push(token) for token in tokens] == [False] * 7 + [True]


def test_a_token_that_begins_a_character_completes_a_stop_string() -> None:
    vocabulary = KINDS["byte_level"]
    ids = {piece: id_ for id_, piece in vocabulary.behind.items()}
    finder = StopFinder(vocabulary.tokenizer, ["Answer: "], [])
    tokens = [ids[b"Answer"], ids[b":"], ids[b" \xe2"]]
    assert [finder.push(token) for token in tokens] == [False, False, True]
    assert continuation(vocabulary.tokenizer, tokens, 0) == "Answer: "


def test_a_space_sign_in_bytes_is_what_the_decoder_makes_of_it() -> None:
    """A space where it replaces signs in the joined text, the sign where it replaces them in each token."""
    for kind, sign in (("gguf", " "), ("llama2", "\u2581")):
        vocabulary = KINDS[kind]
        tokens = vocabulary.encode("a\u2581b")
        assert vocabulary.tokenizer.decode(tokens) == f"a{sign}b"
        assert continuation(vocabulary.tokenizer, tokens, 0) == f"a{sign}b"
        assert continuation(vocabulary.tokenizer, tokens, 2) == f"{sign}b"


class _Upper(PreTrainedTokenizerFast):
    def _decode(self, *args: Any, **options: Any) -> str:
        return super()._decode(*args, **options).upper()


class _Comma:
    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [",".join(tokens)]


@pytest.mark.parametrize("way", ["overridden", "in Python", "none", "CTC", "other strip"])
def test_what_has_no_bytes_is_decoded_by_the_tokenizer(way: str) -> None:
    vocabulary = VOCABULARIES["gemma"]()
    backend = vocabulary.tokenizer.backend_tokenizer
    tokenizer = (_Upper if way == "overridden" else PreTrainedTokenizerFast)(tokenizer_object=backend)
    if way == "in Python":
        backend.decoder = decoders.Decoder.custom(_Comma())
    elif way == "none":
        backend.decoder = None
    elif way == "CTC":
        backend.decoder = decoders.CTC(pad_token="a")
    elif way == "other strip":
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 2, 0)])
    ids = {text: id_ for id_, text in vocabulary.behind.items()}
    tokens = [ids[piece] for piece in (b" ", b" Answer", b":", b" a", b"END", b".")]
    whole = tokenizer.decode(tokens)
    assert continuation(tokenizer, tokens, 0) == whole
    for cut in range(len(tokens)):
        assert tokenizer.decode(tokens[:cut]) + continuation(tokenizer, tokens, cut) == whole


def test_bytes_without_a_table_join_up_wherever_they_are_cut() -> None:
    """The decoder takes all characters of a run of bytes back while its last one is incomplete."""
    vocabulary = VOCABULARIES["gemma"]()
    backend = vocabulary.tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 2, 0)])
    tokens = vocabulary.encode("a\u65e5\u672cb\U0001f600")
    for context in range(len(tokens)):
        for cut in range(context, len(tokens)):
            pieces = [
                continuation(vocabulary.tokenizer, tokens[:end], begin)
                for begin, end in pairwise([0, context, cut, len(tokens)])
            ]
            assert pieces[:2] == [
                vocabulary.text(tokens[:context]),
                vocabulary.text(tokens[:cut])[len(vocabulary.text(tokens[:context])) :],
            ]
            assert "".join(pieces) == vocabulary.text(tokens)


def test_tokens_may_be_added_later() -> None:
    tokenizer = byte_tokenizer()
    assert continuation(tokenizer, [*b"ab", 257, 258], 1) == "b"
    tokenizer.add_tokens(["<x>"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert continuation(tokenizer, [*b"ab", 257, 258], 1) == "b<x>"
    assert continuation(tokenizer, [*b"ab", 257, 258], 1, special=True) == "b<x><pad>"


def test_spaces_are_not_cleaned_up() -> None:
    """`" ."` would become `"."` after the space is out."""
    vocabulary = VOCABULARIES["slow"]()
    vocabulary.tokenizer.clean_up_tokenization_spaces = True
    tokens = vocabulary.encode("a") + vocabulary.encode(" .")
    assert continuation(vocabulary.tokenizer, tokens, 0) == "a ."
    assert continuation(vocabulary.tokenizer, tokens, 2) == "."


# -- branches


class Text:
    """Of a branch by the truth of its vocabulary."""

    def __init__(self, vocabulary: Vocabulary, branch: Branch) -> None:
        self._text, self._tokens = vocabulary.text, branch.tokens

    def __getitem__(self, span: slice) -> str:
        return self._text(self._tokens[: span.stop])[len(self._text(self._tokens[: span.start])) :]


@pytest.fixture(scope="module", params=["byte_level", "llama2", "slow"])
def served(request: pytest.FixtureRequest) -> tuple[Vocabulary, TreeDecoder]:
    vocabulary = KINDS[request.param]
    model = tiny_model(vocab_size=400, num_hidden_layers=1)  # some ids have no token
    decoder = TreeDecoder(model, vocabulary.tokenizer, kv_bytes=1 << 24)
    decoder.eos_token_ids = frozenset()
    return vocabulary, decoder


def test_branches_steps_and_stops_agree_at_every_token(served: tuple[Vocabulary, TreeDecoder]) -> None:
    """Steps, forced text, forks and rollbacks in the middle of characters."""
    vocabulary, decoder = served
    stops = ("\n", "a", "\u2603", " ")

    async def check(branch: Branch, rng: random.Random) -> None:
        truth = Text(vocabulary, branch)
        assert branch.text == truth[branch.prompt_length : branch.length]
        assert branch.full_text == vocabulary.text(branch.tokens, special=True)
        position = rng.randint(0, branch.length)
        assert branch.text_from(position) == truth[position : branch.length]
        for step, end in zip(branch.steps, branch.step_ends, strict=True):
            assert step.text == truth[end - len(step.tokens) : end]

    async def search() -> None:
        for seed in range(12):
            rng = random.Random(seed)
            prompt = vocabulary.encode("prompt \u65e5\u672c\u8a9e \u2603")
            root = await decoder.root(
                prompt[: rng.randint(1, len(prompt))],
                SamplingParams(stop=stops, seed=seed, temperature=3.0, max_step_tokens=7),
            )
            branches = [root]
            for _ in range(14):
                branch = rng.choice(branches)
                action = rng.randrange(6)
                if action == 0:
                    branches += branch.fork(1, at=rng.randint(1, branch.length))
                elif action == 1:
                    branch.truncate(rng.randint(max(1, branch.length - 3), branch.length))
                elif action == 2:
                    text = rng.choice(["\u65e5", " a", "\U0001f600\n"])
                    tokens = vocabulary.encode(text)
                    await branch.extend(tokens[: rng.randint(1, len(tokens))])
                else:
                    begin = branch.length
                    step = await branch.step()
                    texts = [
                        vocabulary.text(branch.tokens[:end], special=True)[
                            len(vocabulary.text(branch.tokens[:begin], special=True)) :
                        ]
                        for end in range(begin, branch.length + 1)
                    ]
                    stopped = [any(stop in text for stop in stops) for text in texts]
                    assert stopped[:-1] == [False] * (len(texts) - 1)
                    assert stopped[-1] == (step.reason == "stop_string")
                await check(branch, rng)
            for branch in branches:
                branch.release()

    asyncio.run(search())


def test_step_texts_join_up_to_the_text_of_the_branch(served: tuple[Vocabulary, TreeDecoder]) -> None:
    vocabulary, decoder = served

    async def search() -> None:
        prompt = vocabulary.encode("\u65e5\u672c")[:-1]
        root = await decoder.root(prompt, SamplingParams(temperature=2.0, max_step_tokens=1))
        for _ in range(60):
            await root.step()
            assert "".join(step.text for step in root.steps) == root.text
        assert root.text == Text(vocabulary, root)[root.prompt_length : root.length]
        root.release()

    asyncio.run(search())


def test_embeddings_have_no_text(served: tuple[Vocabulary, TreeDecoder]) -> None:
    vocabulary, decoder = served

    async def search() -> None:
        root = await decoder.root(vocabulary.encode("a\u65e5")[:-1])
        await root.extend_embeds(decoder.model.get_input_embeddings().weight[:2].detach())
        await root.extend(vocabulary.encode("\u65e5")[-1:] + vocabulary.encode("b"))
        assert root.text == "\u65e5b"
        assert root.full_text == "a\u65e5b"
        root.release()

    asyncio.run(search())


def test_the_real_tokenizer_agrees_with_itself(
    real_model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    """Any ids at all: its own text of them, but for an incomplete character at the end."""
    _, tokenizer = real_model
    rng = random.Random(0)
    for _ in range(200):
        tokens = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))]
        cut = rng.randint(0, len(tokens))
        for special in (False, True):
            own = tokenizer.decode(tokens, skip_special_tokens=not special)
            first = continuation(tokenizer, tokens[:cut], 0, special=special)
            text = first + continuation(tokenizer, tokens, cut, special=special)
            assert own in (text, text + "\ufffd")
