"""Finished texts that are kept: whose ids they decide, control tokens, and which ones leave first."""

import pytest
from tiny_models import EOS, byte_tokenizer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.decoding.retained import RetainedTexts


@pytest.fixture
def kept(model, one_thread):
    """A store over a tokenizer with the words ab and cd, and a function that keeps a text in it."""
    tokenizer = byte_tokenizer(pairs=["ab", "cd"])
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22)

    def keep(store, owner, prompt, generated, length=None):
        async def run():
            root = await decoder.root(prompt[:1] if length else prompt, SamplingParams())
            await root.extend(generated)
            store.of(owner).keep(root, length or root.prompt_length, prompt)
            root.release()

        decoder.run(run())

    return decoder, keep


def test_owners_do_not_choose_each_others_ids(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 8, 1000)
    own, other = store.of("a"), store.of("b")
    keep(store, "a", "x", list(b"ab" * 20))
    text = "x" + "ab" * 20
    assert own.ids(text, decoder.token_ids(text)) == [*b"x", *(b"ab" * 20)]
    assert other.ids(text, decoder.token_ids(text)) == [*b"x", *[EOS + 1] * 20]
    assert len(store) == 1
    store.clear()
    assert own.ids(text, decoder.token_ids(text)) == [*b"x", *[EOS + 1] * 20]


def test_tokens_that_were_added_stand_for_themselves(kept):
    """A model may spell such a token in others: the text is the same, the meaning is not."""
    decoder, keep = kept
    decoder.tokenizer.add_tokens(["<tool>"])
    store = RetainedTexts(decoder, 8, 1000)
    keep(store, "", "x", list(b"<tool>" + b"cd" * 20))
    text = "x<tool>" + "cd" * 20
    canonical = decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decoder.tokenizer.convert_tokens_to_ids("<tool>") in canonical
    assert store.of("").ids(text, canonical) == canonical
    store.clear()


def test_ids_are_joined_where_a_tokenizer_adds_to_the_start_of_a_text(kept, monkeypatch):
    """As those of SentencePiece do: the ids of the rest alone are not those behind the beginning."""
    decoder, keep = kept
    store = RetainedTexts(decoder, 8, 1000)
    sampled = list(b"ab" * 12)
    keep(store, "", "x", sampled)
    text = "x" + "ab" * 12 + "ab!"
    canonical = decoder.token_ids(text)
    monkeypatch.setattr(type(decoder), "token_ids", lambda self, rest: [*b" ", *rest.encode()])
    assert store.of("").ids(text, canonical) == [*b"x", *sampled, EOS + 1, *b"!"]
    store.clear()


def test_a_prompt_that_was_read_behind_its_first_token_is_known_as_a_whole(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 8, 1000)
    sampled = list(b"ab" * 12)
    keep(store, "", "xyz", [*b"yz", *sampled], length=3)
    keep(store, "", "xab", list(b"a"), length=4)  # broken off before its end
    text = "xyz" + "ab" * 12
    assert store.of("").ids(text, decoder.token_ids(text)) == [*b"xyz", *sampled]
    store.clear()


def test_the_store_says_how_many_are_resident(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 8, 1000)
    keep(store, "", "x", list(b"ab" * 20))
    keep(store, "", "y", list(b"ab" * 20))
    assert len(store) == 2
    decoder.runtime.kv.drop_pins()  # as when pages run out
    assert len(store) == 0


def kept_of(store, owner, decoder, prompts):
    """Prompts of an owner that are kept: those whose answers are found with the ids that were forced."""
    own = store.of(owner)
    found = {}
    for prompt in prompts:
        text = prompt + "ab" * 20
        found[prompt] = own.ids(text, decoder.token_ids(text)) == [*prompt.encode(), *(b"ab" * 20)]
    return [prompt for prompt, is_kept in found.items() if is_kept]


def test_an_owner_who_keeps_much_pushes_out_no_text_of_one_who_has_less(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 6, 1000)
    for prompt in "mn":
        keep(store, "small", prompt, list(b"ab" * 20))
    for prompt in "abcdefgh":
        keep(store, "large", prompt, list(b"ab" * 20))
    assert len(store) == 6
    assert kept_of(store, "small", decoder, "mn") == ["m", "n"]
    assert kept_of(store, "large", decoder, "abcdefgh") == ["e", "f", "g", "h"]
    for prompt in "opq":
        keep(store, "small", prompt, list(b"ab" * 20))
    assert len(kept_of(store, "small", decoder, "mnopq")) == 3  # half of them each
    store.clear()


def test_tokens_are_shared_out_as_texts_are(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 100, 41 * 4)  # four texts of 41 tokens
    keep(store, "small", "m", list(b"ab" * 20))
    for prompt in "abcd":
        keep(store, "large", prompt, list(b"ab" * 20))
    assert kept_of(store, "small", decoder, "m") == ["m"]
    assert kept_of(store, "large", decoder, "abcd") == ["b", "c", "d"]
    store.clear()


def test_alone_an_owner_may_keep_all_that_there_is_room_for(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 3, 1000)
    for prompt in "abcd":
        keep(store, "one", prompt, list(b"ab" * 20))
    assert kept_of(store, "one", decoder, "abcd") == ["b", "c", "d"]
    store.clear()


@pytest.mark.parametrize("by", ["text", "ids"])
def test_a_text_that_was_gone_on_with_stays_the_longest(kept, by):
    """By requests of text, and by those of token ids, whose texts nobody knows."""
    decoder, keep = kept
    store = RetainedTexts(decoder, 2, 1000)
    keep(store, "", "a", list(b"ab" * 20))
    keep(store, "", "b", list(b"ab" * 20))
    text = "a" + "ab" * 20
    if by == "ids":
        assert store.of("").ids(None, [*b"a", *(b"ab" * 20), 3]) == [*b"a", *(b"ab" * 20), 3]
    else:
        store.of("").ids(text, decoder.token_ids(text))
    keep(store, "", "c", list(b"ab" * 20))
    assert kept_of(store, "", decoder, "abc") == ["a", "c"]
    store.clear()


def test_ids_of_one_owner_refresh_no_text_of_another_one(kept):
    decoder, keep = kept
    store = RetainedTexts(decoder, 3, 1000)
    keep(store, "a", "x", list(b"ab" * 20))
    keep(store, "a", "y", list(b"ab" * 20))
    store.of("b").ids(None, [*b"x", *(b"ab" * 20)])
    keep(store, "a", "z", list(b"ab" * 20))
    keep(store, "a", "w", list(b"ab" * 20))
    assert kept_of(store, "a", decoder, "wxyz") == ["w", "y", "z"]
    store.clear()


def test_behind_a_special_token_a_text_has_other_ids(kept):
    """It is in no text that a client gets, so what follows it is found by nobody."""
    decoder, keep = kept
    store = RetainedTexts(decoder, 8, 1000)
    keep(store, "", "x", [*(b"ab" * 12), EOS, *(b"ab" * 12)])
    text = "x" + "ab" * 24
    ids = store.of("").ids(text, decoder.token_ids(text))
    assert ids == [*b"x", *(b"ab" * 12), *[EOS + 1] * 12]
    store.clear()
