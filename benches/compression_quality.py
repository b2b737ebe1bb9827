"""The loss of compressed KV on a real model, against evicted pages: python -m benches.compression_quality

The text is the same as in `benches.sparse_quality`. A prefix is computed densely and then reduced to a share
of its pages; the next `window` tokens are fed in one forward, and their next tokens are compared with those
after the whole prefix. "compress" is `Branch.compress`, "evict" `Branch.evict`, "window" the sink and the
latest pages. All three keep the same sink and recent pages, and the same number of bytes.

Another window repeats the passage 1,500 tokens earlier, which the model copies as far as it finds it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from tts_decode import TreeBranch, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model

from benches.sparse_quality import BUDGETS, REPEATED, Means, load_text, next_tokens

JUDGES = ("compress", "evict", "window")
SINK, RECENT = 1, 4


def twin(branch: TreeBranch) -> TreeBranch:
    """A branch with the same KV in pages of its own."""
    tree, pool = branch.runtime.tree, branch.runtime.pool
    own = tree.create()
    tree.append([own], [branch.tokens])
    tables, _ = tree.block_tables([branch.id, own])
    pool.copy(torch.from_numpy(tables.T.copy()))
    (copy,) = branch.fork()
    tree.release(copy.id)
    copy.id = own
    return copy


def shrink(branch: TreeBranch, judge: str, keep: int) -> None:
    """Brings the branch down to so many pages."""
    if judge == "compress":
        branch.compress(keep, sink=SINK, recent=RECENT)
    elif judge == "evict":
        branch.evict(keep, sink=SINK, recent=RECENT)
    else:
        columns = branch.columns(branch.kv_length)
        branch.runtime.tree.evict([branch.id], list(range(SINK, columns - keep + SINK)))


async def logits_of(branch: TreeBranch, tokens: list[int]) -> Tensor:
    """Logits after each of the tokens, [T, vocab]; the branch is as before."""
    copy = branch.copy()
    hidden = await copy.read(tokens, range(len(tokens)))
    copy.release()
    packed = branch.runtime.engine.packed
    assert packed is not None  # of the models that this serves
    return packed.logits(hidden).clone()


async def measure(decoder: TreeDecoder, text: list[int], length: int, window: int, found: Means) -> None:
    begin = length - window
    root = await decoder.root(decoder.tokenizer.decode(text[:2]), ids=text[:begin])
    passages = {"new": text[begin : length + 1]}
    passages["repeated"] = text[begin - REPEATED :][: window + 1] if begin >= REPEATED else []
    dense = {name: await logits_of(root, part[:-1]) for name, part in passages.items() if part}
    for budget, share in BUDGETS.items():
        keep = round(share * begin / decoder.page_size)
        for judge in JUDGES:
            branch = twin(root)
            shrink(branch, judge, keep)
            assert decoder.resident_bytes([branch]) == keep * decoder.runtime.pool.page_bytes
            for name, logits in dense.items():
                part = passages[name]
                key = {"length": length, "passage": name, "budget": budget, "judge": judge}
                other = await logits_of(branch, part[:-1])
                found.add(key, next_tokens(logits, other, torch.tensor(part[1:])))
            branch.release()
            print(f"{length} tokens, {budget}, {judge}", file=sys.stderr)
    root.release()


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: agreement, KL divergence and perplexity over that of dense, by judge."""
    cells = {tuple(row[name] for name in ("length", "passage", "budget", "judge")): row for row in rows}
    lines = ["| tokens | passage | budget | dense perplexity | " + " | ".join(JUDGES) + " |"]
    lines.append("|---" * (4 + len(JUDGES)) + "|")
    for length, passage, budget in dict.fromkeys(key[:3] for key in cells):
        found = [cells[length, passage, budget, judge] for judge in JUDGES]
        dense = float(found[0]["dense_perplexity"])  # type: ignore[arg-type]
        losses = [
            f"{row['agreement']:.1%}, {row['kl']:.3f}, x {row['perplexity'] / dense:.2f}"  # type: ignore[operator, str-format]
            for row in found
        ]
        lines.append(f"| {length:,} | {passage} | {budget} | {dense:.2f} | " + " | ".join(losses) + " |")
    return "\n".join(lines)


def main(
    model: str = DEFAULT_MODEL,
    lengths: Annotated[str, typer.Option(help="tokens, with commas; multiples of 16")] = "2048,4096,8192",
    window: Annotated[int, typer.Option(help="last tokens that are measured; a multiple of 16")] = 256,
    json_file: Annotated[Path | None, typer.Option("--json", help="where results go")] = None,
) -> None:
    begin = time.perf_counter()
    loaded, tokenizer = load_model(model)
    sizes = [int(length) for length in lengths.split(",")]
    text = load_text(tokenizer, max(sizes) + 1)
    found = Means()
    for length in sizes:
        decoder = TreeDecoder(loaded, tokenizer, kv_bytes=1 << 30, track_mass=True)
        decoder.run(measure(decoder, text, length, window, found))
    rows = found.rows()
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"model": model, "window": window, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
