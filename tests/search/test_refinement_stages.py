"""Refinement in stages: feedback and edit, 3D's thinking, T1's tool, each against a plain transcription."""

import math
from collections import Counter

import pytest
from plain_scripts import answer_of, draw, prompts
from refining_model import QUESTION, SEEDS, Model, found, score_of
from scripted import run_scripted, scorer, scripted_decoder, words
from tts_decode.search import feedback_edit, t1_verify, three_d

pytestmark = pytest.mark.usefixtures("one_thread")


def test_feedback_edit_has_a_model_for_each_stage():
    for seed in SEEDS:
        drafter, critic, editor = Model(seed), Model(seed + 100), Model(seed + 200)
        drafts = [drafter.ask(QUESTION) for _ in range(3)]
        edits = []
        for draft in drafts:
            said = [critic.ask(f"{QUESTION}{draft} say") for _ in range(2)]
            edits += [editor.ask(f"{QUESTION}{draft}: {said[0]}\n\n{said[1]} edit") for _ in range(2)]
        decoders = [scripted_decoder(Model(seed + more)) for more in (0, 100, 200)]
        result = run_scripted(
            decoders[0],
            feedback_edit,
            QUESTION,
            n=3,
            num_feedbacks=2,
            num_edits=2,
            scorer=scorer(score_of),
            feedback_decoder=decoders[1],
            edit_decoder=decoders[2],
            feedback_prompt="{question}{answer} say",
            edit_prompt="{question}{answer}: {feedback} edit",
        )
        assert found(result) == sorted(drafts + edits)
        assert result.answer == max(edits, key=score_of)
        assert [len(decoder.complete.calls) for decoder in decoders] == [3, 6, 6]
        assert all(decoder.stats().branches == 0 for decoder in decoders)


class Thinker(Model):
    """Thinks for 1 to 6 words, the end of thinking included, then answers."""

    def __call__(self, prefix, k):
        u = draw(self.seed, prefix, k)
        text, end = f"w{int(1e9 * u)} so {int(1e3 * u) % 3}", "eos"
        if not prefix.endswith(("</think>", "Final: ")):
            text, end = f"t{int(1e9 * u)} " + "hm " * (int(1e6 * u) % 5) + "</think>", "stop_string"
        return text, end, [-3 * draw(u, i) for i in range(len(words(text)))]

    def think(self, prompt, cap):
        """What it says if thinking is cut after `cap` words, and whether that was so."""
        text, _, logprobs = self(prompt, self.asked[prompt])
        self.asked[prompt] += 1
        pieces, cut = words(text), len(words(text)) > cap
        if cut:
            pieces, logprobs = [*pieces[:cap], "</think>Final: "], [*logprobs[:cap], -1.0]
        thought = "".join(pieces)
        said, _, more = self(prompt + thought, self.asked[prompt + thought])
        self.asked[prompt + thought] += 1
        logprobs = [*logprobs, *more, 0.0]
        self.likelihood[thought + said] = sum(logprobs) / len(logprobs)
        return thought + said, cut


@pytest.mark.parametrize("scored", [False, True])
def test_three_d_refines_the_preferred_sample_of_a_turn(scored):
    cuts = set()
    for seed in SEEDS:
        model, prompt, turns = Thinker(seed), QUESTION, []
        for _ in range(3):
            samples = [model.think(prompt, 4) for _ in range(4)]
            cuts |= {cut for _, cut in samples}
            turns.append([text for text, _ in samples])
            best = max(turns[-1], key=score_of) if scored else model.voted(turns[-1])
            prompt = f"{QUESTION}{best.rpartition('</think>')[2].strip()} again"
        result = run_scripted(
            scripted_decoder(Thinker(seed), logprobs_of=lambda prefix, text: [-1.0]),
            three_d,
            QUESTION,
            n=4,
            max_rounds=2,
            max_tokens_thinking=4,
            final_answer="Final: ",
            refine_prompt="{question}{answer} again",
            scorer=scorer(score_of) if scored else None,
            extract=answer_of,
        )
        everything = [text for turn in turns for text in turn]
        assert found(result) == sorted(everything)
        assert result.answer == (max(everything, key=score_of) if scored else model.voted(turns[-1]))
    assert cuts == {False, True}


@pytest.mark.parametrize("scored", [False, True])
def test_t1_drops_what_the_tool_refutes(scored):
    def tool(code):
        assert code.startswith("t </think> w")
        kind = int(1e6 * draw("tool", code)) % 4
        if kind == 0:
            raise RuntimeError("no such name")
        return ["", "False", "True False", "False True"][kind]

    class Coder(Model):
        def __call__(self, prefix, k):
            text, end, logprobs = super().__call__(prefix, k)
            if prefix.endswith("code"):
                text = f"Here:\n```python\n{' '.join(text.split()[:3])}\n```\n"
                logprobs = [-1.0] * len(words(text))
            return text, end, logprobs

    def p_yes(prefix):
        return 0.1 + 0.8 * draw("yes", prefix)

    refuted = Counter()
    for seed in range(12):
        model = Coder(seed)
        texts = [model.ask(QUESTION) for _ in range(5)]
        expected = {}
        for text in texts:
            code = model.ask(f"{QUESTION}{text} code").split("```python\n")[1].removesuffix("```\n")
            passed = int(1e6 * draw("tool", code)) % 4 in (0, 3)
            score = score_of(text) if scored else p_yes(f"{QUESTION}{text} ok?")
            expected[text] = (passed, score)
        result = run_scripted(
            scripted_decoder(
                Coder(seed),
                logprobs_of=lambda prefix, text: [
                    math.log(p_yes(prefix) if text == "Yes" else 1 - p_yes(prefix))
                ],
            ),
            t1_verify,
            QUESTION,
            n=5,
            tool=tool,
            scorer=scorer(score_of) if scored else None,
            code_prompt="{question}{answer} code",
            verify_prompt="{question}{answer} ok?",
        )
        assert result.answer == max(texts, key=expected.get)
        for candidate in result.candidates:
            passed, score = expected[candidate.text]
            assert candidate.score == pytest.approx(score * passed)
        refuted[sum(not passed for passed, _ in expected.values())] += 1
    assert len(refuted) > 2


def test_t1_without_a_tool_asks_for_no_code():
    decoder = scripted_decoder(Model(3))
    result = run_scripted(decoder, t1_verify, QUESTION, n=4, scorer=scorer(score_of))
    assert set(prompts(decoder)) == {QUESTION}
    assert result.answer == max(found(result), key=score_of)
