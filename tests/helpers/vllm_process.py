"""vLLM in a separate process, with our attention or its own: runs one engine at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class VLLMProcess:
    """It starts when it is first asked.

    Args:
        ours: whether our attention is on. workers: whether an engine computes in processes of its own, as it
            does by default, or here, where the next engine starts sooner. env: further variables.
    """

    def __init__(self, *, ours: bool, workers: bool = False, **env: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        variables = {
            "TTS_KERNELS_VLLM": str(int(ours)),
            "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(workers)),
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # of a function that is sent to the worker
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | variables | env,
            text=True,
        )

    def generate(self, model: Path, engine: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
        """What an engine answers.

        Args:
            engine: arguments of vllm.LLM. runs: of each, "prompts" (lists of token ids) and "sampling"
                (arguments of SamplingParams).

        Returns:
            runs: of each, its prompts' sequences as pairs of tokens and their log-probabilities; preemptions,
            cached_tokens: counts of the engine; report: as of WorkerReport; torch_runtime,
            our_runtime: files of the OpenMP runtimes that compute in the worker; threads, cores: all of the
            worker, and those that torch computes with; log: of the process since it started.

        Raises RuntimeError with the message of whatever the engine raises.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"model": str(model), "engine": engine, "runs": runs}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(
            self._process.stdout.readline() or '{"error": "the process ended"}'
        )
        log = Path(self._log.name).read_text(encoding="utf-8")
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}\n{log[-4000:]}")
        return answer | {"log": log}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {"skip_tokenizer_init": True, "enforce_eager": True, "disable_log_stats": False}
    report = "tts_kernels.integrations.vllm.report.WorkerReport"
    llm = LLM(request["model"], worker_extension_cls=report, **settings | request["engine"])
    runs = []
    for run in request["runs"]:
        sampling = SamplingParams(detokenize=False, ignore_eos=True, logprobs=0, **run["sampling"])
        prompts = [{"prompt_token_ids": prompt} for prompt in run["prompts"]]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        runs.append([[_sequence(sequence) for sequence in output.outputs] for output in outputs])
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    answer = {
        "runs": runs,
        "preemptions": counts["vllm:num_preemptions"],
        "cached_tokens": counts["vllm:prefix_cache_hits"],
        "report": llm.collective_rpc("attention_report")[0],
        **llm.collective_rpc(_process)[0],
    }
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    return answer


def _sequence(sequence: Any) -> tuple[list[int], list[float]]:
    tokens = list(sequence.token_ids)
    return tokens, [of[token].logprob for token, of in zip(tokens, sequence.logprobs, strict=True)]


def _process(worker: Any) -> dict[str, Any]:
    import torch

    from tts_kernels import _core

    libraries = os.listdir(Path(torch.__file__).with_name("lib"))
    return {
        "torch_runtime": [name for name in libraries if name.startswith(("libgomp", "libiomp", "libomp"))],
        "our_runtime": _core.parallel_backend(),
        "threads": len(os.listdir("/proc/self/task")),
        "cores": torch.get_num_threads(),
    }


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where vLLM logs
    for line in sys.stdin:
        try:
            found = _answer(json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)
