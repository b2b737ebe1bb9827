"""Checks which causal language models of transformers `TreeDecoder` serves, with a tiny one of every class.

`python -m benches.model_table` builds each (`benches.tiny_architectures`), runs it in a `TreeDecoder` and
compares the results with the model's own plain forward in float32. It writes the tables of docs/models.md, in
a minute or two. Given names of model types, it prints their rows instead.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tts_decode import TreeDecoder, UnsupportedModelError
from tts_decode.model.families.conditions import why_general

from benches.tiny_architectures import MODEL_TYPES, VOCAB, tiny_model

PAGE = Path(__file__).parents[1] / "docs/models.md"
BEGIN, END = "<!-- tables: python -m benches.model_table -->", "<!-- end of tables -->"
TOLERANCE = 1e-4  # nats; sums of float32 in another order stay below 2e-5
PATHS = "packed", "general", "refused", "not built", "wrong"
_FIRST_ID = 3  # below lie the ids of padding and of a text's ends

# The heading, and the model types below it; the first that matches takes a type.
FAMILIES = {
    "Llama": "^m?llama",
    "Qwen": "^qwen",
    "Mistral": "^(mistral|mixtral|ministral)",
    "Gemma": "gemma",
    "Phi": "^phi",
    "DeepSeek": "^deepseek",
    "GLM": "^glm",
    "Granite": "^granite|^bamba",
    "OLMo": "olmo",
    "Falcon and StableLM": "^falcon|^stablelm",
    "GPT, and others of its time": "gpt|^(bloom|codegen|ctrl|mpt|opt|xglm|xlnet|cpmant)$",
    "Cohere": "^cohere",
    "EXAONE, Ernie 4.5, HunYuan, Kimi, MiniCPM, MiniMax": "^(exaone|ernie4|hunyuan|hy_|kimi|minicpm|minimax)",
    "Nemotron, LFM": "^(nemotron|dory|lfm)",
    "State-space and recurrent models": "mamba|rwkv|xlstm|jamba",
    "Decoders of encoder-decoder models": "bart|marian|pegasus|blenderbot|mvp|prophet|trocr|whisper|musicgen",
    "BERT and its like, as decoders": "bert|electra|^(ernie|roformer|xmod|data2vec|big_bird|xlm|reformer)",
    "Others": "",
}


class IdsOnly:
    """Stands for a tokenizer where prompts are ids and nothing is read."""

    chat_template = None
    eos_token_id = None

    def decode(self, ids: Any, **_: Any) -> str:
        return "x" * len(ids)


def largest_difference(model: Any) -> float:
    """How far a decoder's log-probabilities are from those of the model's plain forwards, in nats.

    A prompt in chunks, steps of one token, branches of different lengths below a fork, one of them cut and
    continued: each in a batch with what else there is.
    """
    decoder = TreeDecoder(model, IdsOnly(), kv_bytes=1 << 23, max_batch_tokens=19)
    ids = torch.randint(_FIRST_ID, VOCAB, (3, 60), generator=torch.Generator().manual_seed(1)).tolist()

    async def run() -> list[tuple[list[int], torch.Tensor]]:
        trunk = await decoder.root(ids[0][:30])
        seen = [(list(trunk.tokens), await trunk.next_logprobs())]
        for token in ids[0][30:34]:
            await trunk.extend([token])
            seen.append((list(trunk.tokens), await trunk.next_logprobs()))
        long, short, cut = trunk.fork(3)
        await cut.extend(ids[2][:20])
        cut.truncate(37)
        for branch, rest in ((long, ids[0][34:]), (short, ids[1][:7]), (cut, ids[2][30:41])):
            await branch.extend(rest)
        for branch in (long, short, cut):
            seen.append((list(branch.tokens), await branch.next_logprobs()))
        return seen

    worst = 0.0
    for tokens, logprobs in decoder.run(run()):
        with torch.no_grad():
            plain = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        worst = max(worst, float((plain.log_softmax(-1) - logprobs).abs().max()))
    return worst


def outcome(model_type: str) -> str:
    """What becomes of the type: packed, general, refused and why, or wrong, which must not be."""
    try:
        model = tiny_model(model_type)
    except ImportError as cause:
        library = re.search(r"pip install (\w+)", str(cause))
        return f"not built here: it needs {library[1] if library else cause}"
    try:
        worst = largest_difference(model)
    except UnsupportedModelError as refusal:
        text = str(refusal)
        if disagrees := re.search(r"does not agree with its own forward: (.*?), at position", text):
            return f"refused by the self-check: {disagrees[1]} differs"
        reason = re.search(r" needs (.*), which the tree attention path does not serve", text)
        return f"refused: {reason[1] if reason else text}"
    if not worst < TOLERANCE:
        return f"wrong by {worst:.2g} nats"
    return "packed" if why_general(model) is None else "general"


def row(model_type: str) -> str:
    return f"| `{model_type}` | {outcome(model_type)} |"


def fill(page: str, rows: dict[str, str]) -> str:
    """The page with its tables replaced by these rows, by model type."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{_summary(rows)}\n\n{_tables(rows)}\n\n{END}{rest.partition(END)[2]}"


def _summary(rows: dict[str, str]) -> str:
    count = {path: sum(f"| {path}" in line for line in rows.values()) for path in PATHS}
    return (
        f"transformers {transformers.__version__} has {len(rows)} model types: {count['packed']} run packed "
        f"and {count['general']} general, {count['refused']} are refused, {count['not built']} was not built."
    )


def _tables(rows: dict[str, str]) -> str:
    left = dict(rows)
    parts = []
    for family, pattern in FAMILIES.items():
        lines = [left.pop(name) for name in rows if name in left and re.search(pattern, name)]
        parts.append("\n".join([f"## {family}\n", "| model type | path |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def main(model_types: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # products this small gain nothing from more
    if model_types:
        print("\n".join(map(row, model_types)))
    else:
        rows = {name: row(name) for name in MODEL_TYPES}
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
        if wrong := [line for line in rows.values() if "| wrong" in line]:
            raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    typer.run(main)
