"""S* against a transcription: what is corrected, which programs cluster, who meets whom, who wins."""

import contextlib
import io
import random
import sys
import threading

import pytest
from plain_scripts import number
from scripted import counted, run_scripted, scripted_decoder
from tts_decode import search

QUESTION = "Q: "
TESTS = [("1", "3"), ("2", "4")]  # input + 2
PROGRAMS = (
    "print(int(input()) + 2)",
    "x = int(input())\nprint(x + 2 if x < 3 else 0)",
    "x = int(input())\nprint(x + 2 if x != 5 else 'five')",
    "from __future__ import annotations\nprint(int(input()) + 2)",
    "print(int(input()) + 1)",
    "print(4)",
    "raise SystemError('no')",
)
PROMPTS = {
    "debug_prompt": "{question}[{answer}|{feedback}] debug",
    "inputs_prompt": "{question}{count} inputs",
    "distinguish_prompt": "{question}[{first}|{second}|{count}] distinguish",
    "judge_prompt": "{question}[{first}|{second}|{outputs}] judge",
}
LOCK = threading.Lock()


def python(code):
    """Runs a program in this process; what it raises is its caller's to tell."""
    out, stdin = io.StringIO(), sys.stdin
    with LOCK:
        try:
            with contextlib.redirect_stdout(out):
                exec(code, {"__name__": "__main__"})
        finally:
            sys.stdin = stdin
    return out.getvalue()


def reply(seed, verdicts):
    def script(prefix, k):
        drawn = number(seed, prefix, k)
        if prefix.endswith("inputs"):
            return f"```\n{drawn % 7}\n```\nor\n```\n{drawn % 5}\n```\n```\n9\n```", "eos"
        if prefix.endswith("distinguish"):
            return f"```in\n{3 + drawn % 3}\n```", "eos"
        if prefix.endswith("judge"):
            return f"I say {verdicts[drawn % len(verdicts)]}", "eos"
        return f"Try {drawn}:\n```python\n{PROGRAMS[drawn // 7 % len(PROGRAMS)]}\n```", "eos"

    return script


def output(program, text):
    """Returns a program's output for an input, from this file's own interpreter call."""
    values = iter([text])
    said = []
    names = {"input": lambda: next(values), "print": lambda x: said.append(f"{x}\n"), "__name__": "__main__"}
    try:
        exec(program, names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "".join(said)


def plain_s_star(script, n, rounds, count):
    """(winner, all texts, pairs of programs that met)."""
    ask = counted(script)

    def say(prompt):
        return ask(prompt)[0]

    def code_of(text):
        return text.split("```python\n")[1].split("\n```")[0]

    def tested(text):
        passed, told = 0, []
        for given, expected in TESTS:
            out = output(code_of(text), given)
            right = out.strip() == expected
            passed += right
            verdict = "as expected" if right else f"expected:\n{expected}"
            told.append(f"input:\n{given}\noutput:\n{out}\n{verdict}")
        return passed, "\n\n".join(told)

    rng, everything, final = random.Random(0), [], []
    for text in [say(QUESTION) for _ in range(n)]:
        everything.append(text)
        passed, told = tested(text)
        for _ in range(rounds):
            if passed == len(TESTS):
                break
            text = say(f"{QUESTION}[{text}|{told}] debug")
            everything.append(text)
            passed, told = tested(text)
        final.append((text, passed))
    good = [text for text, passed in final if passed == len(TESTS)]
    if not good:
        return max(final, key=lambda pair: pair[1])[0], everything, []
    inputs = []
    if len(good) > 1:
        blocks = say(f"{QUESTION}{count} inputs").split("```")[1::2]
        for block in blocks:
            text = block.strip("\n")
            if text not in inputs:
                inputs.append(text)
        inputs = inputs[:count]
    clusters = {}
    for text in good:
        clusters.setdefault(tuple(output(code_of(text), i) for i in inputs), []).append(text)
    groups = list(clusters.values())
    wins, met = [0.0] * len(groups), []
    for i in range(len(groups)):
        for j in range(i + 1, len(groups)):
            a, b = code_of(rng.choice(groups[i])), code_of(rng.choice(groups[j]))
            met.append((a, b))
            (made,) = (
                x.removeprefix("in\n").strip("\n")
                for x in say(f"{QUESTION}[{a}|{b}|{count}] distinguish").split("```")[1::2]
            )
            said = []
            for x, y in ((a, b), (b, a)):
                shown = f"input:\n{made}\nA:\n{output(x, made)}\nB:\n{output(y, made)}"
                said.append(say(f"{QUESTION}[{x}|{y}|{shown}] judge").split()[-1])
            if said == ["A", "B"]:
                wins[i] += 1
            elif said == ["B", "A"]:
                wins[j] += 1
            elif said == ["Tie", "Tie"]:
                wins[i] += 0.5
                wins[j] += 0.5
    return rng.choice(groups[wins.index(max(wins))]), everything, met


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("rounds", [0, 2])
def test_the_program_that_wins_is_that_of_the_paper(seed, rounds):
    verdicts = [["A", "B", "Tie"], ["A", "B"]][seed % 2]
    winner, everything, _ = plain_s_star(reply(seed, verdicts), 6, rounds, 2)
    result = run_scripted(
        scripted_decoder(reply(seed, verdicts)),
        search.s_star,
        QUESTION,
        n=6,
        max_rounds=rounds,
        num_tests=2,
        tool=python,
        public_tests=TESTS,
        **PROMPTS,
    )
    assert result.answer == winner
    assert sorted(c.text for c in result.candidates) == sorted(everything)


def test_the_cases_occur():
    met = [len(plain_s_star(reply(seed, ["A", "B"]), 6, 2, 2)[2]) for seed in range(16)]
    corrected = [len(plain_s_star(reply(seed, ["A", "B"]), 6, 2, 2)[1]) for seed in range(16)]
    assert {0, 1} < set(met)
    assert len(set(corrected)) > 3


def test_without_a_tool_different_programs_meet():
    def script(prefix, k):
        if prefix.endswith("judge"):
            return ("A" if prefix.index("two") < prefix.index("one") else "B"), "eos"
        return f"```\n{['one', 'two', 'one'][k]}\n```", "eos"

    decoder = scripted_decoder(script)
    result = run_scripted(decoder, search.s_star, QUESTION, n=3, public_tests=TESTS, **PROMPTS)
    assert result.answer == "```\ntwo\n```"
    assert [call.prefix[-5:] for call in decoder.complete.calls[3:]] == ["judge", "judge"]
    assert result.best.score == 1.0
