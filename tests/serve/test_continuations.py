"""A request that continues an earlier one computes only the new tokens, whatever their text is."""

import pytest
from serving import Served
from tiny_models import EOS, byte_tokenizer
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.decoding.retained import RetainedTexts
from tts_decode.serve.config import Limits

PROMPT = "The quick brown fox jumps over the lazy dog."
PAGE = 16
SAMPLED = {"seed": 5, "max_tokens": 60}


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def computed(served, call):
    """Returns a call's result, and the number of tokens that the model computed for it."""
    before = served.decoder.stats()
    answer = call()
    after = served.decoder.stats()
    sampled = answer["usage"]["completion_tokens"]
    assert after.generated_tokens - before.generated_tokens == sampled
    # Every sampled token but the last was fed, and all of the prompt that was not resident.
    return answer, after.forward_tokens - before.forward_tokens - (sampled - 1)


def test_the_same_prompt_again_computes_one_token(served):
    served.complete(PROMPT, **SAMPLED)
    again, tokens = computed(served, lambda: served.complete(PROMPT, **SAMPLED))
    assert (cached(again), tokens) == (len(PROMPT) - 1, 1)


@pytest.mark.parametrize("rest", [" And then?", ""])
@pytest.mark.parametrize("stream", [False, True])
def test_text_that_came_back_computes_a_page_of_it_at_most(served, rest, stream):
    """A random model writes bytes that are no characters: as text they come back as other tokens."""
    body = {"prompt": PROMPT, **SAMPLED}
    if stream:
        text = "".join(c["choices"][0]["text"] for c in served.chunks("/v1/completions", body))
    else:
        text = served.complete(**body)["choices"][0]["text"]
    assert "\N{REPLACEMENT CHARACTER}" in text
    known = PROMPT + text
    answer, tokens = computed(served, lambda: served.complete(known + rest, max_tokens=4, seed=1))
    prompt = answer["usage"]["prompt_tokens"]
    assert tokens == prompt - cached(answer) <= len(rest) + PAGE


def test_steps_of_a_client_each_compute_a_page_at_most(served):
    """As a search does that keeps its tree at the client: each step is a request of its own, several from one
    text, and later ones go back to earlier texts."""
    texts = [PROMPT]
    for step in range(6):
        prompt = texts[-1] if step % 2 else texts[max(0, len(texts) - 3)]
        answer, tokens = computed(
            served, lambda prompt=prompt, step=step: served.complete(prompt, n=1, seed=step, max_tokens=20)
        )
        if step:
            assert tokens <= PAGE
            assert answer["usage"]["prompt_tokens"] - cached(answer) <= PAGE
        texts.append(prompt + answer["choices"][0]["text"])


def test_a_chat_goes_on_with_its_answers(served):
    messages = [{"role": "user", "content": "Tell me a long story about a fox, if you please."}]
    first = served.chat(messages, **SAMPLED)
    messages.append({"role": "assistant", "content": first["choices"][0]["message"]["content"]})
    messages.append({"role": "user", "content": "More."})
    answer, tokens = computed(served, lambda: served.chat(messages, max_tokens=5, seed=2))
    new = len("\n<user>More.\n<assistant>")
    assert tokens == answer["usage"]["prompt_tokens"] - cached(answer) <= new + PAGE


def test_a_final_message_goes_on_where_it_was(served):
    messages = [{"role": "user", "content": "Tell me a long story about a fox, if you please."}]
    text = ""
    for step in range(4):
        given = [*messages, {"role": "assistant", "content": text}] if text else messages
        goes_on = {"continue_final_message": True} if text else {}
        answer, tokens = computed(
            served,
            lambda given=given, goes_on=goes_on, step=step: served.chat(
                given, seed=step, max_tokens=20, **goes_on
            ),
        )
        assert not text or tokens <= PAGE
        text += answer["choices"][0]["message"]["content"]


def test_all_choices_of_a_request_can_be_gone_on_with(served):
    answer = served.complete(PROMPT, n=4, **SAMPLED)
    for choice in answer["choices"]:
        _, tokens = computed(served, lambda text=choice["text"]: served.complete(PROMPT + text, max_tokens=2))
        assert tokens <= PAGE


def test_what_is_kept_is_bounded(serve, model):
    served = serve(limits=Limits(retained=3, idle_seconds=5.0))
    for number in range(8):
        served.complete(f"{number} {PROMPT}", **SAMPLED)
        assert served.decoder.stats().pins == min(number + 1, 3)
    assert cached(served.complete(f"7 {PROMPT}", **SAMPLED)) > PAGE
    assert cached(served.complete(f"0 {PROMPT}", **SAMPLED)) < PAGE  # it left first


def test_a_full_pool_is_not_held_by_what_is_kept(model):
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=12 * 24576)  # 12 pages of 16 tokens
    decoder.eos_token_ids = frozenset()
    served = Served(decoder, least_kv_tokens=1)
    for number in range(6):
        served.complete(f"{number} {PROMPT}", seed=1, max_tokens=100)
    served.assert_empties()
    served.close()


# -- ids for a text, without a server


@pytest.fixture
def kept(model, one_thread):
    """A decoder whose tokenizer has words, and texts that it keeps."""
    tokenizer = byte_tokenizer(pairs=["ab", "cd"])
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22)
    store = RetainedTexts(decoder, 8, 1000)
    yield decoder, store.of("")
    store.clear()
    assert decoder.stats().resident_bytes == 0


AB = EOS + 1


def keep(decoder, retained, prompt, generated):
    """As if the model had sampled these ids after the prompt."""

    async def run():
        root = await decoder.root(prompt, SamplingParams())
        await root.extend(generated)
        text = prompt if isinstance(prompt, str) else retained.text_of(prompt)
        retained.keep(root, root.prompt_length, text)
        root.release()

    decoder.run(run())


def test_canonical_ids_stay_where_they_lose_a_page_at_most(kept):
    decoder, retained = kept
    keep(decoder, retained, "x", list(b"y" * 30 + b"ab" * 3))  # "ab" in two tokens each
    text = "x" + "y" * 30 + "ababab!"
    canonical = decoder.token_ids(text)
    assert canonical == [*b"x", *b"y" * 30, AB, AB, AB, *b"!"]
    assert retained.ids(text, canonical) == canonical


def test_known_ids_replace_canonical_ones_that_part_early(kept):
    decoder, retained = kept
    sampled = list(b"ab" * 12)
    keep(decoder, retained, "x", sampled)
    text = "x" + "ab" * 12 + "ab!"
    assert retained.ids(text, decoder.token_ids(text)) == [*b"x", *sampled, AB, *b"!"]


def test_a_text_that_parts_inside_a_known_one_takes_the_ids_before(kept):
    decoder, retained = kept
    sampled = list(b"ab" * 12)
    keep(decoder, retained, "x", sampled)
    text = "x" + "ab" * 10 + "acd"
    assert retained.ids(text, decoder.token_ids(text)) == [*b"x", *(b"ab" * 10), *b"a", EOS + 2]


def test_another_text_takes_none(kept):
    decoder, retained = kept
    keep(decoder, retained, "x", list(b"ab" * 12))
    assert retained.ids("y" + "ab" * 12, [1, 2, 3]) == [1, 2, 3]


def test_a_character_in_several_tokens_is_taken_whole_or_not(kept):
    decoder, retained = kept
    star = "\N{BLACK STAR}".encode()  # three bytes, three tokens
    keep(decoder, retained, "x", [*(b"ab" * 12), *star])
    whole = "x" + "ab" * 12 + "\N{BLACK STAR}!"
    assert retained.ids(whole, decoder.token_ids(whole)) == [*b"x", *(b"ab" * 12), *star, *b"!"]
    without = "x" + "ab" * 12 + "!"
    assert retained.ids(without, decoder.token_ids(without)) == [*b"x", *(b"ab" * 12), *b"!"]


def test_a_longer_text_takes_the_place_of_its_beginning(kept):
    decoder, retained = kept
    keep(decoder, retained, "x", list(b"ab" * 12))
    keep(decoder, retained, "x", list(b"ab" * 14))
    assert decoder.stats().pins == 1


def test_ids_that_a_client_gave_do_not_become_those_of_their_text(kept):
    """Else one client's ids would answer for another one's text."""
    decoder, retained = kept
    keep(decoder, retained, list(b"ab" * 20), list(b"x"))
    text = "ab" * 20 + "x!"
    assert retained.ids(text, decoder.token_ids(text)) == [AB] * 20 + list(b"x!")


def test_ids_that_their_text_has_anyway_are_kept(kept):
    decoder, retained = kept
    keep(decoder, retained, [AB] * 20, list(b"ab" * 20))
    text = "ab" * 40
    assert retained.ids(text, decoder.token_ids(text))[:60] == [AB] * 20 + list(b"ab" * 20)


def test_tokens_chosen_by_a_bias_do_not_become_those_of_their_text(served):
    """Else one client could choose how another one's text is spelled in tokens."""
    first = served.complete([97, 98], logit_bias={"97": 100}, return_token_ids=True, **SAMPLED)
    assert served.decoder.stats().pins == 1
    ids = [97, 98, *first["choices"][0]["token_ids"]]
    _, tokens = computed(served, lambda: served.complete(ids, max_tokens=2))
    assert tokens <= PAGE  # by its ids it is found
