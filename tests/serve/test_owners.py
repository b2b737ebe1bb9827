"""What is kept for one API key decides nothing for another one, and control tokens stand for themselves."""

import pytest
from serving import Served, make_chatty
from tiny_models import EOS, byte_tokenizer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.serve.retained import RetainedTexts

KEYS = ("first-key-of-all", "second-key-of-all")
PROMPT = "The quick brown fox jumps over the lazy dog."


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


def test_each_key_has_its_own_texts(model, one_thread):
    served = Served(make_chatty(model), keys=KEYS)
    bodies = {"seed": 5, "max_tokens": 60}
    found = {}
    for key in KEYS:
        headers = {"authorization": f"Bearer {key}"}
        if key == KEYS[0]:
            first = served.post("/v1/completions", {"prompt": PROMPT, **bodies}, headers=headers).json()
        text = PROMPT + first["choices"][0]["text"]
        answer = served.post("/v1/completions", {"prompt": text, "max_tokens": 1}, headers=headers).json()
        found[key] = answer["usage"]["prompt_tokens"]
    own = len(PROMPT) + 60
    canonical = len(served.decoder.token_ids(PROMPT + first["choices"][0]["text"]))
    assert own != canonical  # the random model writes what is no text
    assert abs(found[KEYS[0]] - own) <= 16
    assert found[KEYS[1]] == canonical
    served.assert_empties()
    served.close()
