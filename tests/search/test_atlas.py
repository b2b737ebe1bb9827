"""ATLAS: its scores by plain loops over the paper's equations, and where an answer continues with a text."""

import math

import numpy as np
import pytest
import torch
from plain_scripts import prompts
from scripted import run_scripted, scripted_decoder, words
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, search
from tts_decode.errors import UnsupportedByEngineError
from tts_decode.search import attention_trigger
from tts_decode.select import attended_tokens, attention_gradient

QUESTION = "Q: "


def causal(seed, layers, heads, count):
    rng = np.random.default_rng(seed)
    a = np.tril(rng.random((layers, heads, count, count)) ** 3)
    return a / a.sum(-1, keepdims=True)


def plain_gradient(a, p):
    layers, heads, count, _ = a.shape
    i = count - 1

    def given(j, m):  # to the past
        return sum(a[j, h, m, k] for h in range(heads) for k in range(m))

    share = [given(j, i) / max(given(j, m) for m in range(count)) for j in range(layers)]
    gradient = sum(j / (layers - 1) * abs(share[j] - share[j - 1]) for j in range(1, layers))
    entropy = [
        -sum(a[-1, h, x, y] * math.log(a[-1, h, x, y] + 1e-10) for x in range(count) for y in range(count))
        for h in range(heads)
    ]
    received = [sum(a[-1, h, i, k] for k in range(i)) / i for h in range(heads)]
    return gradient * (1 - p) * sum(e / sum(entropy) * r for e, r in zip(entropy, received, strict=True))


@pytest.mark.parametrize("shape", [(2, 1, 2), (3, 2, 5), (6, 4, 9)])
def test_the_attention_gradient_is_that_of_the_equations(shape):
    a = causal(sum(shape), *shape)
    assert attention_gradient(a, 0.3) == pytest.approx(plain_gradient(a, 0.3))
    assert attention_gradient(a, 1.0) == 0
    assert attention_gradient(a[:, :, :1, :1], 0.3) == 0  # nothing precedes it


def plain_attended(a, h, k, beta, tau):
    layers, heads, count, _ = a.shape
    i, third = count - 1, layers / 3

    def psi(level):
        if level < third:
            return 0.2 * level / third
        return 0.5 * (level - third) / third if level < 2 * third else 0.3 * (layers - level) / third

    delta = [math.exp(level / tau) for level in range(1, layers + 1)]
    e = [sum(d / sum(delta) * h[level, j] for level, d in enumerate(delta)) for j in range(count)]

    def relevance(j):
        attended = sum(psi(x + 1) * sum(a[x, y, i, j] for y in range(heads)) / heads for x in range(layers))
        cosine = e[j] @ e[i] / math.sqrt((e[j] @ e[j]) * (e[i] @ e[i]))
        return beta * attended + (1 - beta) * cosine

    return sorted(sorted(range(i), key=lambda j: -relevance(j))[:k])


@pytest.mark.parametrize("shape", [(2, 1, 4), (3, 2, 9), (7, 3, 12)])
@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_the_attended_tokens_are_those_of_the_equations(shape, beta):
    a = causal(1 + sum(shape), *shape)
    h = np.random.default_rng(5).normal(size=(shape[0], shape[2], 6))
    assert attended_tokens(a, h, 3, beta=beta) == plain_attended(a, h, 3, beta, 2.0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"attention: got shape \(2, 3, 4\)"):
        attention_gradient(np.zeros((2, 3, 4)), 0.5)
    with pytest.raises(ValueError, match=r"states: got shape \(2, 3\), expected \[2, 4, hidden\]"):
        attended_tokens(causal(0, 2, 1, 4), np.zeros((2, 3)))


# -- the strategy

TEXT = "The river of Paris is the Seine 7 times"


def script(prefix, k):
    """A sentence word by word; some words are improbable until a text about them is in view."""
    said = prefix.rpartition(QUESTION)[2]
    rest = words(TEXT)[len(words(said)) :]
    known = prefix.count("<")
    doubt = {0: ("river ", "is ", "Seine ", "7 "), 1: ("Paris ", "Seine "), 2: ("Seine ",)}.get(known, ())
    return "".join(rest), "eos", [-2.0 if word in doubt else -0.1 for word in rest]


def asked_for(texts, **options):
    queries = []

    def retrieve(query):
        queries.append(query)
        return texts.get(len(queries), f"<{query}>")

    decoder = scripted_decoder(script)
    result = run_scripted(
        decoder,
        search.atlas,
        QUESTION,
        retrieve=retrieve,
        retrieved_prompt="{retrieved}{question}",
        **options,
    )
    return queries, prompts(decoder), result.answer


def plain(texts, most):
    """The same by hand: words in order, the first in doubt is looked up, the answer continues before it."""
    stop = {"the", "of", "is"}
    queries, asked, view, begin = [], [], "", 0
    while True:
        all_words = words(TEXT)
        prefix = f"{view}{QUESTION}{''.join(all_words[:begin])}"
        asked.append(prefix)
        logprobs = script(prefix, 0)[2]
        for at in range(begin, len(all_words)):
            word = all_words[at].strip().lower()
            doubtful = math.exp(logprobs[at - begin]) < 0.5 and word not in stop and word[0].isalpha()
            if len(queries) == most or not doubtful:
                continue
            before = f"{view}{QUESTION}{''.join(all_words[:at])}"
            kept = [w for w in before.replace("<", " ").replace(">", " ").replace(":", " ").split()]
            queries.append(" ".join([w for w in kept if w.lower() not in stop][-7:]))
            text = texts.get(len(queries), f"<{queries[-1]}>")
            if text:
                view, begin = text, at
                break
        else:
            return queries, asked


@pytest.mark.parametrize("texts", [{}, {1: ""}, {2: "<>"}, {1: "<><>"}])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_answer_goes_on_before_the_word_in_doubt_with_the_text_in_view(texts, most):
    queries, asked, answer = asked_for(texts, max_retrievals=most)
    assert (queries, asked) == plain(texts, most)
    assert answer == TEXT
    assert len(queries) <= most


def test_a_trigger_of_the_callers_decides():
    seen = []

    async def trigger(branch, at):
        seen.append(branch.text_from(at).split()[0])
        return "water" if seen[-1] == "Seine" else None

    queries, asked, _ = asked_for({}, trigger=trigger)
    assert seen[:2] == ["river", "Seine"]
    assert queries[0] == "water"
    assert asked[1] == f"<water>{QUESTION}The river of Paris is the "


def test_hidden_log_probabilities_are_named():
    decoder = scripted_decoder(lambda prefix, k: ("river", "eos", [math.nan]))
    with pytest.raises(UnsupportedByEngineError, match="atlas reads the log-probabilities"):
        run_scripted(decoder, search.atlas, QUESTION, retrieve=str)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("high", [False, True])
def test_the_papers_trigger_reads_the_attention_of_a_model(high):
    model = tiny_model()
    model.set_attn_implementation("eager")
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20)

    async def asked():
        root = await decoder.root("What is the river of Paris?", SamplingParams(max_tokens=5))
        await root.step()
        at = root.length - 1
        with torch.no_grad():
            out = model(torch.tensor([root.tokens]), output_attentions=True, output_hidden_states=True)
        a = torch.stack([x[0] for x in out.attentions]).double().numpy()
        h = torch.stack([x[0] for x in out.hidden_states[1:]]).double().numpy()
        value = plain_gradient(a, math.exp(root.logprobs[-1]))
        trigger = attention_trigger(model, value * (1.01 if high else 0.99), k=4)
        found = await trigger(root, at)
        expected = root.text_of([root.tokens[i] for i in plain_attended(a, h, 4, 0.7, 2.0)])
        root.release()
        return found, expected.strip()

    found, expected = decoder.run(asked())
    assert found == (None if high else expected)
