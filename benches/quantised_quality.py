"""The loss of quantised arithmetic compared with a float32 forward: python -m benches.quantised_quality

`TreeDecoder` reads text of this repository, in independent windows, with the weights as loaded; the
transformers model reads it with the same weights dequantised to float32. The program reports both
perplexities, and by how much the log-probability of a token of the text differs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tts_decode import TreeDecoder
from tts_decode.cli.info import collect
from tts_decode.model.loading import load_model

from benches.quantised.files import prepare_file

ROOT = Path(__file__).parents[1]
# Prose and code. They change with the project: results are of the same text where its digest is the same.
TEXTS = (
    "LICENSE",
    "docs/strategies.md",
    "docs/sparse.md",
    "docs/models.md",
    "docs/sampling.md",
    "csrc/cpu/tree_attention.cpp",
    "csrc/cpu/sample_tokens.cpp",
)
MODELS = ("smollm2/Q4_1", "gemma3-270m/Q4_K_M")


def read_texts(root: Path = ROOT) -> str:
    return "\n\n".join((root / name).read_text(encoding="utf-8") for name in TEXTS)


def windows_of(tokenizer: Any, text: str, size: int, tokens: int) -> list[list[int]]:
    """Parts of the text that hold `tokens` tokens or little more, of `size` each, BOS before each where the
    tokenizer adds one."""
    begin = [tokenizer.bos_token_id] if getattr(tokenizer, "add_bos_token", False) else []
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < tokens:
        raise ValueError(f"tokens: got {tokens}, the text has {len(ids)}")
    step = size - len(begin)
    return [begin + ids[first : first + step] for first in range(0, tokens, step)]


def decoder_logprobs(decoder: TreeDecoder, windows: Iterable[list[int]]) -> Tensor:
    """float64 [N]: of each window's tokens but the first."""

    async def read(window: list[int]) -> Tensor:
        branch = await decoder.root(window[:1])
        try:
            return await branch.extend(window[1:])
        finally:
            branch.release()

    return torch.cat([decoder.run(read(window)) for window in windows]).double()


@torch.inference_mode()
def model_logprobs(model: Any, windows: Iterable[list[int]]) -> Tensor:
    """float64 [N]: the same by the model's own forward."""
    found = []
    for window in windows:
        ids = torch.tensor([window])
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].double())
    return torch.cat(found)


def compare(reference: Tensor, other: Tensor) -> dict[str, float]:
    """Perplexities, the change from the first to the second as a share, and differences in nats."""
    expected, got = (math.exp(-values.mean().item()) for values in (reference, other))
    difference = (other - reference).abs()
    return {
        "reference_perplexity": expected,
        "perplexity": got,
        "change": got / expected - 1,
        "mean_difference": difference.mean().item(),
        "difference_of_999_in_1000": difference.quantile(0.999).item(),
        "largest_difference": difference.max().item(),
    }


def main(
    model: Annotated[list[str] | None, typer.Option(help="model/kind, as of quantised_decoding.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="As of load_model.")] = None,
    tokens: Annotated[int, typer.Option(help="Of the text, about.")] = 20480,
    window: Annotated[int, typer.Option(help="Tokens that are read in one piece.")] = 512,
    folder: Annotated[Path, typer.Option(help="Of models and the peers' environments.")] = ROOT
    / "build/peers",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    text = read_texts()
    rows = []
    for name in model or MODELS:
        base, _, kind = name.partition("/")
        path = prepare_file(base, kind, folder, torch.get_num_threads())
        print(f"{name}: dequantised", file=sys.stderr)
        plain, tokenizer = load_model(path, "float32")
        windows = windows_of(tokenizer, text, window, tokens)
        reference = model_logprobs(plain.eval(), windows)
        del plain
        for form in weights or ["auto"]:
            print(f"{name}: {form}", file=sys.stderr)
            decoder = TreeDecoder(*load_model(path, weights=form))
            row = compare(reference, decoder_logprobs(decoder, windows))
            rows.append({"model": name, "weights": form, "tokens": len(reference)} | row)
    print("| model | weights | tokens | perplexity | float32 | change | mean difference | 99.9 % | largest |")
    print("|---|---|" + "---:|" * 7)
    for row in rows:
        print(
            f"| {row['model']} | {row['weights']} | {row['tokens']} | {row['perplexity']:.4f} "
            f"| {row['reference_perplexity']:.4f} | {100 * row['change']:+.3f} % "
            f"| {row['mean_difference']:.4f} | {row['difference_of_999_in_1000']:.3f} "
            f"| {row['largest_difference']:.3f} |"
        )
    if json_file is not None:
        machine = {name: value for name, value in collect().items() if name != "model_cache"}
        told = {"texts": TEXTS, "sha256": hashlib.sha256(text.encode()).hexdigest(), "window": window}
        told |= {"machine": machine, "results": rows}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
