"""vLLM on a CPU with our attention: the text and the log-probabilities that its own attention gives."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from needed import needs
from tiny_models import VOCAB, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_process import VLLMProcess

from benches.peers.models import prepare

needs("vllm")

OURS = "tts_kernels.integrations.vllm.packed.PackedBackend"
THEIRS = "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend"
ROOM = {"max_model_len": 768, "max_num_seqs": 32, "kv_cache_memory_bytes": 2**28}
GREEDY = {"temperature": 0.0, "max_tokens": 24}
BEST = {"temperature": 1.0, "top_k": 1, "max_tokens": 24}  # greedy, in a form that may ask for n sequences


@pytest.fixture(scope="module")
def ours() -> Iterator[VLLMProcess]:
    process = VLLMProcess(ours=True)
    yield process
    process.close()


@pytest.fixture(scope="module")
def theirs() -> Iterator[VLLMProcess]:
    process = VLLMProcess(ours=False)
    yield process
    process.close()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory, real_model: object) -> Path:
    return prepare("smollm2", ["folder"], tmp_path_factory.mktemp("models"))["folder"]


@pytest.fixture(scope="module")
def text(smollm2: Path) -> list[int]:
    """Some two thousand tokens of English that nobody edits."""
    page = Path(__file__).parents[2] / "LICENSE"
    tokens: list[int] = AutoTokenizer.from_pretrained(smollm2).encode(page.read_text(encoding="utf-8"))
    return tokens


def calls(text: list[int]) -> list[dict[str, Any]]:
    """Prompts of mixed lengths, some twice; many that share a prefix; samples of one prompt; short ones whose
    answers are longer than they are."""
    mixed = [text[:7], text[:100], text[50:181], text[:600], text[300:740]]
    return [
        {"prompts": mixed, "sampling": GREEDY},
        {"prompts": [text[:300] + text[k : k + 20] for k in range(0, 200, 25)], "sampling": GREEDY},
        {"prompts": mixed, "sampling": GREEDY},
        {"prompts": [text[:333]], "sampling": BEST | {"n": 8}},
        {
            "prompts": [text[k : k + 40] for k in range(0, 640, 40)],
            "sampling": {"temperature": 0.0, "max_tokens": 64},
        },
    ]


@pytest.fixture(scope="module")
def expected(theirs: VLLMProcess, smollm2: Path, text: list[int]) -> dict[str, Any]:
    """vLLM's own attention in float32."""
    return theirs.generate(smollm2, ROOM | {"dtype": "float32"}, calls(text))


def assert_same(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    for run, other in zip(answer["runs"], expected["runs"], strict=True):
        for sequences, others in zip(run, other, strict=True):
            assert [tokens for tokens, _ in sequences] == [tokens for tokens, _ in others]
            difference = torch.tensor([p for _, p in sequences]) - torch.tensor([p for _, p in others])
            assert difference.abs().max() < 1e-3


def assert_ours(answer: dict[str, Any]) -> None:
    assert all(backend == OURS and steps > 0 for backend, _, steps in answer["report"])
    assert "tts_kernels computes the attention of this engine" in answer["log"]


@pytest.mark.model
def test_float32_equals_the_attention_of_vllm(
    ours: VLLMProcess, smollm2: Path, text: list[int], expected: dict[str, Any]
) -> None:
    answer = ours.generate(smollm2, ROOM | {"dtype": "float32"}, calls(text))
    assert_ours(answer)
    assert_same(answer, expected)
    # Of the prompts that are read twice, all full pages but the last.
    assert answer["cached_tokens"] >= sum((n - 1) // 16 * 16 for n in (7, 100, 131, 600, 440))
    assert [name for name, _, _ in expected["report"]] == [THEIRS]
    assert "TTS_KERNELS_VLLM=0 turns it off" in expected["log"]


@pytest.mark.model
def test_preemption_and_chunked_prefill(
    ours: VLLMProcess, smollm2: Path, text: list[int], expected: dict[str, Any]
) -> None:
    # Room for 790 tokens: 30 layers of 3 heads of 64 channels, keys and values, in float32.
    tight = {"max_num_batched_tokens": 64, "kv_cache_memory_bytes": 790 * 30 * 3 * 64 * 2 * 4}
    answer = ours.generate(smollm2, ROOM | tight | {"dtype": "float32"}, calls(text))
    assert_ours(answer)
    assert answer["preemptions"] > 0
    assert_same(answer, expected)


@pytest.mark.parametrize(
    ("family", "engine"),
    [
        ("mistral", {}),  # a window of 9 tokens
        ("gemma2", {}),  # windows of 8 tokens in every other layer, logits capped at 2
        ("gemma2", {"block_size": 128}),  # split into pages of 16
        ("gemma2", {"disable_hybrid_kv_cache_manager": True}),  # one group of layers with and without windows
        ("llama", {"block_size": 48, "enforce_eager": False}),  # compiled by torch
    ],
)
def test_tiny_models(
    ours: VLLMProcess, theirs: VLLMProcess, family: str, engine: dict[str, Any], tmp_path: Path
) -> None:
    # Without a head of its own: vLLM knows no other Gemma 2.
    tiny_model(family, tie_word_embeddings=True).save_pretrained(tmp_path)
    draw = random.Random(3)
    prefix = [draw.randrange(VOCAB - 4) for _ in range(150)]
    prompts = [prefix[: draw.randrange(1, 150)] + prefix[k : k + 5] for k in range(12)]
    runs = [
        {"prompts": prompts, "sampling": GREEDY},
        {"prompts": [prefix], "sampling": BEST | {"n": 8, "max_tokens": 40}},
    ]
    room = {"max_model_len": 256, "max_num_seqs": 16, "max_num_batched_tokens": 64, "dtype": "float32"}
    room |= {"kv_cache_memory_bytes": 2**24}
    answer = ours.generate(tmp_path, room | engine, runs)
    assert_ours(answer)
    assert_same(answer, theirs.generate(tmp_path, room, runs))


@pytest.mark.model
def test_bfloat16_is_as_close_to_float32_as_the_attention_of_vllm(
    ours: VLLMProcess, theirs: VLLMProcess, smollm2: Path, text: list[int]
) -> None:
    prompts = [text[k : k + 250] for k in range(0, 2000, 250)]
    runs = [{"prompts": prompts, "sampling": {"n": 8, "temperature": 1.0, "max_tokens": 32}}]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).float()

    def errors(process: VLLMProcess) -> torch.Tensor:
        """Mean square of each of 64 sequences of 32 tokens, against a plain forward in float32."""
        answer = process.generate(smollm2, ROOM | {"dtype": "bfloat16"}, runs)
        found = []
        for prompt, sequences in zip(prompts, answer["runs"][0], strict=True):
            for tokens, logprobs in sequences:
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
                exact = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
                found.append((torch.tensor(logprobs) - exact).square().mean())
        return torch.stack(found)

    own, other = errors(ours), errors(theirs)
    deviation = float((own.var() / len(own) + other.var() / len(other)).sqrt())  # the tokens differ
    print("mean square errors, ours and theirs:", float(own.mean()), float(other.mean()), "+-", deviation)
    assert own.mean() - other.mean() < 3 * deviation


@pytest.mark.parametrize(
    ("variables", "code", "answer"),
    [
        ({}, 0, "yes: tts-kernels .* computed the attention of 2 layers for [1-9].* steps in vLLM 0.32"),
        ({"TTS_KERNELS_VLLM": "0"}, 1, "no: TTS_KERNELS_VLLM=0 turns it off; unset it"),
        ({"VLLM_PLUGINS": "others"}, 1, "no: VLLM_PLUGINS=others leaves out tts_kernels; add it, or unset"),
    ],
)
def test_the_command(variables: dict[str, str], code: int, answer: str) -> None:
    command = [Path(sys.executable).with_name("tts-kernels-vllm"), "check"]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == code, done.stderr
    assert re.fullmatch(f"{answer}[^\n]*\n", done.stdout)


def test_one_pool_of_threads(tmp_path: Path) -> None:
    """An engine in processes of its own, as it runs by default, on all cores: we compute on torch's OpenMP
    runtime, and the worker has no thread more than without us."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("needs two cores")
    tiny_model().save_pretrained(tmp_path)
    runs = [{"prompts": [list(range(200))], "sampling": {"n": 32, "temperature": 1.0, "max_tokens": 8}}]
    engine = {"max_model_len": 256, "dtype": "bfloat16", "kv_cache_memory_bytes": 2**24}
    answers = []
    for ours in (True, False):
        process = VLLMProcess(ours=ours, workers=True, VLLM_CPU_NUM_OF_RESERVED_CPU="0")
        answers.append(process.generate(tmp_path, engine, runs))
        process.close()
    assert_ours(answers[0])
    assert answers[0]["torch_runtime"] == [answers[0]["our_runtime"]]
    assert answers[0]["cores"] == cores
    assert answers[0]["threads"] == answers[1]["threads"]
