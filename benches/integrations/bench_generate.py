"""Compares `generate` over a TreeCache with "sdpa": python -m benches.integrations.bench_generate

It runs samples of one prompt, and beam search. Both compute the prompt once, with a batch of one, and then
repeat its row: a DynamicCache by copies, a TreeCache by forks. They take turns in one process, on the same
model, whose attention is switched. Decoding is timed separately; the whole call is the prompt, the copies and
decoding. The last token of the prompt counts as decoding for both. A third contestant has no attention and no
cache: the ratio of "sdpa" to it is the best that any attention could reach.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from tts_decode.cli.info import collect
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model, resolve_dtype

from tts_kernels.integrations.transformers import TreeCache, register

from . import no_attention

WHO = ("sdpa", "tts")
CONTESTANTS = (*WHO, no_attention.NAME)


class Case(NamedTuple):
    """rows: samples or beams. options: of `generate`."""

    rows: int
    prompt: int
    tokens: int
    options: dict[str, Any]


class Run(NamedTuple):
    """Seconds, bytes of KV at their most, and the tokens that came out."""

    prompt: float
    decoding: float
    kv_bytes: int
    sequences: torch.Tensor


CACHES: dict[str, Callable[[PreTrainedConfig], Any]] = {
    "sdpa": lambda config: DynamicCache(config=config),
    "tts": TreeCache,
    no_attention.NAME: no_attention.no_cache,
}


def run(model: PreTrainedModel, who: str, ids: torch.Tensor, case: Case, seed: int) -> Run:
    model.set_attn_implementation(who)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    cache: Any = CACHES[who](model.config)
    if who == "tts":
        cache.prefill(model, ids, copies=case.rows)
    else:
        with torch.no_grad():
            model.base_model(ids[:, :-1], cache=cache, use_cache=True)
        cache.batch_repeat_interleave(case.rows)
    middle = time.perf_counter()
    lengths = {"max_new_tokens": case.tokens, "min_new_tokens": case.tokens}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), cache=cache, **lengths, **case.options)
    end = time.perf_counter()
    if who == "tts":
        kv_bytes = cache.use().peak_bytes
    else:
        kv_bytes = sum(
            layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized
        )
    return Run(middle - begin, end - middle, kv_bytes, out[:, ids.shape[1] :])


def measure(model: PreTrainedModel, case: Case, rounds: int) -> dict[str, Any]:
    """Medians of all rounds, each contestant once in each; ratios are those of the medians."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.config.vocab_size, (1, case.prompt), generator=generator)
    runs: dict[str, list[Run]] = {who: [] for who in CONTESTANTS}
    for turn in range(rounds):
        for who in CONTESTANTS if turn % 2 == 0 else CONTESTANTS[::-1]:
            runs[who].append(run(model, who, ids, case, turn))
    record: dict[str, Any] = {"rows": case.rows, "prompt": case.prompt, "tokens": case.tokens}
    for who in CONTESTANTS:
        decoding = [each.decoding for each in runs[who]]
        record[who] = {
            "prompt_seconds": statistics.median(each.prompt for each in runs[who]),
            "decoding_seconds": statistics.median(decoding),
            "decoding_seconds_of_rounds": decoding,
            "whole_seconds": statistics.median(each.prompt + each.decoding for each in runs[who]),
            "tokens_per_second": case.rows * case.tokens / statistics.median(decoding),
            "kv_bytes": max(each.kv_bytes for each in runs[who]),
        }
    record["same_tokens"] = statistics.mean(
        float((first.sequences == second.sequences).float().mean())
        for first, second in zip(runs["sdpa"], runs["tts"], strict=True)
    )
    for name, what in ("decoding", "decoding_seconds"), ("whole", "whole_seconds"), ("kv", "kv_bytes"):
        record[f"{name}_ratio"] = record["sdpa"][what] / record["tts"][what]
    record["most_ratio"] = record["sdpa"]["decoding_seconds"] / record[no_attention.NAME]["decoding_seconds"]
    return record


def table(records: dict[str, dict[str, Any]]) -> Table:
    grid = Table()
    for column in (
        "",
        "rows",
        "prompt",
        "sdpa tok/s",
        "tts tok/s",
        "decoding",
        "at most",
        "whole call",
        "KV MiB",
        "same tokens",
    ):
        grid.add_column(column, justify="left" if not column else "right")
    for name, record in records.items():
        rates = [f"{record[who]['tokens_per_second']:.1f}" for who in WHO]
        ratios = [f"{record[f'{what}_ratio']:.2f}x" for what in ("decoding", "most", "whole")]
        memory = " / ".join(f"{record[who]['kv_bytes'] / 2**20:.0f}" for who in WHO)
        shape = [str(record["rows"]), str(record["prompt"])]
        grid.add_row(name, *shape, *rates, *ratios, memory, f"{record['same_tokens']:.1%}")
    return grid


def main(
    samples: int = 64,
    prompt: int = 2048,
    width: Annotated[int, typer.Option(help="Beams.")] = 32,
    beam_prompt: int = 512,
    tokens: Annotated[int, typer.Option(help="New tokens of each row.")] = 64,
    rounds: int = 3,
    dtype: str = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the results go.")] = None,
) -> None:
    register()
    no_attention.register()
    model, _ = load_model(dtype=resolve_dtype(dtype))  # float weights, for all contestants
    model.generation_config.eos_token_id = None
    cases = {
        "samples": Case(
            samples, prompt, tokens, {"do_sample": True, "top_k": 0, "num_return_sequences": samples}
        ),
        "beam search": Case(width, beam_prompt, tokens, {"num_beams": width, "num_return_sequences": width}),
    }
    records = {name: measure(model, case, rounds) for name, case in cases.items()}
    Console(width=120).print(table(records))
    results = {
        "machine": {
            name: fact for name, fact in collect().items() if name not in ("default_model", "model_cache")
        },
        "model": DEFAULT_MODEL,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "cases": records,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
