"""Parts of the command by themselves: options, chat templates, the display."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tts_decode.cli.display import Display, Rate, mib
from tts_decode.cli.errors import UsageError, named
from tts_decode.cli.sampling_options import unescape
from tts_decode.cli.strategy_options import parse_options
from tts_decode.rewards.self_evaluation import chat_question
from tts_decode.search import STRATEGIES, SearchRun, Strategy


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_tokens: got 0, expected >= 1", "--max-tokens: got 0, expected >= 1"),
        ("stop[0]: got '', expected a text", "--stop: got '', expected a text"),
        (
            "3 of 8 are free (kv_bytes = 3145728): raise kv_bytes",
            "3 of 8 are free (--kv-mib = 3): raise --kv-mib",
        ),
        ("share: got 'x', expected 'tree'", "--sparse-share: got 'x', expected 'tree'"),
        (
            "(kv_bytes = 1048576): raise kv_bytes or set kv_offload",
            "(--kv-mib = 1): raise --kv-mib or set --kv-offload-mib",
        ),
        (
            "KVOffload.bytes: got 5, expected at least one page",
            "--kv-offload-mib: got 5, expected at least one page",
        ),
        ("it takes longer; raise start_seconds", "it takes longer; raise --ray-start-seconds"),
        ("kv_bytes: got 1048576, expected 5", "--kv-mib: got 1, expected 5"),
        ("model: there is no file x", "--model: there is no file x"),
        ("nothing: got 1, expected 2", "nothing: got 1, expected 2"),
        ("no argument at all", "no argument at all"),
    ],
)
def test_errors_name_the_option_that_an_argument_comes_from(text: str, told: str) -> None:
    assert named(text, {"share": "--sparse-share", "kv_bytes": "--kv-mib: got 1"}) == told


def test_options_without_a_default_have_the_type_of_their_annotation() -> None:
    async def made(
        run: SearchRun, *, n: int = 1, limit: int | None = None, scale: float | None = None
    ) -> None:
        """Nothing."""

    chosen = Strategy(made, "nothing")  # type: ignore[arg-type]
    assert chosen.plain_options == {"n": (int, 1), "limit": (int, None), "scale": (float, None)}
    assert parse_options([chosen], ["limit=3", "scale=2"]) == [{"limit": 3, "scale": 2.0}]
    with pytest.raises(UsageError, match="'limit=x', expected an integer"):
        parse_options([chosen], ["limit=x"])


def test_every_strategy_with_a_scorer_takes_the_final_rule() -> None:
    chosen = [STRATEGIES["rebase"], STRATEGIES["mcts"], STRATEGIES["best_of_n"]]
    given = ["decide_by=weighted", "mcts.decide_by=visits", "rebase.allocation=exact"]
    assert parse_options(chosen, given) == [
        {"decide_by": "weighted", "allocation": "exact"},
        {"decide_by": "visits"},
        {"decide_by": "weighted"},
    ]


def test_options_go_to_the_strategies_that_have_them() -> None:
    chosen = [STRATEGIES["rebase"], STRATEGIES["ets"]]
    rebase, ets = parse_options(chosen, ["n=8", "lambda_b=2", "ets.n=4", "node_cost=token"])
    assert rebase == {"n": 8}
    assert ets == {"n": 4, "lambda_b": 2.0, "node_cost": "token"}
    (lm,) = parse_options([STRATEGIES["lm_beam_search"]], ["early_stopping=true"])
    assert lm == {"early_stopping": True}
    with pytest.raises(UsageError, match="expected true or false"):
        parse_options([STRATEGIES["lm_beam_search"]], ["early_stopping=perhaps"])


def test_chat_question_continues_a_conversation() -> None:
    class Tokenizer:
        def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
            assert options == {"tokenize": False, "add_generation_prompt": True}
            return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"

    question = chat_question(Tokenizer())
    assert question.startswith("</><user>")
    assert question.endswith("</><assistant>")


def test_display_on_a_terminal_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    with Display(Console(file=stream, force_terminal=True, width=80)) as display:
        display.stage("ets: 3 problems")
        display.update("1 done · 17 tokens")
    assert "17 tokens" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased


def test_small_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 10.0, 11.0])
    monkeypatch.setattr("tts_decode.cli.display.time.monotonic", lambda: next(clock))
    rate = Rate(window=3.0)
    assert [round(rate(total)) for total in (0, 50, 100, 100, 400)] == [0, 50, 50, 0, 300]
    assert (mib(1 << 19), mib(300 << 20)) == ("0.5", "300")
    assert unescape("a\\n\\tb") == "a\n\tb"
