"""Measures decoding in vLLM on a CPU, alternately: with its attention, ours, and a stub that returns zeros.

    python -m benches.integrations.bench_vllm --json build/vllm.json          # SmolLM2, bfloat16, eager
    python -m benches.integrations.bench_vllm --wide --json build/vllm_wide.json

The engines stay loaded, each in its own process in the environment that `make integrations` creates, and take
turns; waiting ones are stopped. Requests that only fill the prefix cache do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tts_decode.cli.info import collect

from benches.peers.models import prepare

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build/integrations/vllm/bin/python"
ARMS = ("vLLM", "ours", "stub")
# Bytes of keys and values of a token in bfloat16: layers, KV heads, channels of both.
TOKEN_BYTES = {"smollm2": 2 * 30 * 3 * 2 * 64, "wide": 2 * 8 * 8 * 2 * 128}


class Arm:
    """An engine, stopped but for its measurements."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [PYTHON, Path(__file__).with_name("vllm_arm.py"), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.about = self._answer()
        os.killpg(self._process.pid, signal.SIGSTOP)

    def rate(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second over all sequences."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        rate: float = self._answer()
        os.killpg(self._process.pid, signal.SIGSTOP)
        return rate

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM's process ended with code {self._process.wait()}")
        return json.loads(line)


def settings(options: argparse.Namespace) -> dict[str, list[list[int]]]:
    """Name -> prompts of a batch: shared ones at each number of sequences, and as many different ones."""
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(length)]

    shared = prompt(options.shared)
    found = {f"{n} sequences, {options.shared} tokens shared": [shared] * n for n in options.sequences}
    for n in options.unshared:
        name = f"{n} sequences of {options.unshared_tokens} tokens, nothing shared"
        found[name] = [prompt(options.unshared_tokens) for _ in range(n)]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = "wide" if options.wide else "smollm2"
    folder = prepare(model, ["folder"], ROOT / "build/bench_models")["folder"]
    batches = settings(options)
    context = max(options.shared, options.unshared_tokens) + options.tokens + 16
    different = sum(len(p) for prompts in batches.values() for p in {id(p): p for p in prompts}.values())
    grown = max(len(prompts) for prompts in batches.values()) * (options.tokens + 128)
    engine = {
        "model": str(folder),
        "context": context,
        "branches": max(map(len, batches.values())),
        "kv_bytes": TOKEN_BYTES[model] * (different + grown + context),
    }
    arms = {name: Arm(engine | {"arm": name}) for name in ARMS}
    rates: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in batches}
    for name, prompts in batches.items():
        for arm in arms.values():  # a cached prompt, warm code
            arm.rate(prompts[:1], 2)
            arm.rate(prompts, 2)
        for number in range(options.rounds):
            for arm_name in ARMS[number % 3 :] + ARMS[: number % 3]:
                rates[name][arm_name].append(arms[arm_name].rate(prompts, options.tokens))
        print(_line(name, rates[name]), flush=True)
    for arm in arms.values():
        arm.close()
    machine = {
        name: value for name, value in collect().items() if name not in ("model_cache", "default_model")
    }
    about = {name: arm.about for name, arm in arms.items()}
    told = {"model": model, "tokens": options.tokens, "machine": machine, "load": os.getloadavg()}
    return told | {"arms": about, "rates": rates}


def _line(name: str, rates: dict[str, list[float]]) -> str:
    """Medians in tokens/s, and medians of the rounds' ratios: of a round, all arms met the same machine."""
    shown = ", ".join(f"{arm} {statistics.median(values):.1f}" for arm, values in rates.items())
    ratios = [
        statistics.median(a / b for a, b in zip(rates["ours"], rates[other], strict=True))
        for other in ("vLLM", "stub")
    ]
    return f"{name}: {shown} tok/s; ours {ratios[0]:.2f} x vLLM, {ratios[1]:.2f} of the stub"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true", help="random weights of 32/8/128 heads in 8 layers")
    parser.add_argument("--shared", type=int, help="tokens of the shared prompt (2,049; wide: 8,193)")
    parser.add_argument("--sequences", type=int, nargs="*", help="(1 8 32 64; wide: 32)")
    parser.add_argument(
        "--unshared", type=int, nargs="*", help="sequences with nothing shared (1 8 32; wide: none)"
    )
    parser.add_argument("--unshared-tokens", type=int, default=513)
    parser.add_argument("--tokens", type=int, default=32, help="to decode, of each sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.shared is None:
        options.shared = 8193 if options.wide else 2049
    if options.sequences is None:
        options.sequences = [32] if options.wide else [1, 8, 32, 64]
    if options.unshared is None:
        options.unshared = [] if options.wide else [1, 8, 32]
    if not PYTHON.exists():
        sys.exit(f"{PYTHON.relative_to(ROOT)} is missing; run make integrations")
    result = measure(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
