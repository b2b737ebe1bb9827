"""What int8 activations beside quantised weights cost: perplexity and log-probabilities of a GGUF file's
model as it is served, beside those of the same file dequantised to float32 in transformers.

    python -m benches.quantised_quality                    # the default model, over the pages in docs/
    python -m benches.quantised_quality file.gguf --tokens 20000
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tts_decode import TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.footprint import weight_bytes
from tts_decode.model.loading import load_model

_WINDOW = 512  # tokens that are read as one text
_DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=20_000, help="of the text, at most")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, weights="file")
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in sorted(_DOCS.glob("*.md")))
    ids = torch.tensor(tokenizer(text).input_ids[: options.tokens])
    texts = [part for part in ids.split(_WINDOW) if len(part) > 1]
    served = torch.cat(served_logprobs(model, tokenizer, texts))
    exact = torch.cat(exact_logprobs(options.model, texts))
    difference = (served - exact).abs()
    figures = {
        "model": options.model,
        "kinds": weight_bytes(model),
        "activations": str(model.dtype).removeprefix("torch."),
        "tokens": len(exact),
        "perplexity": math.exp(-float(served.mean())),
        "perplexity_float32": math.exp(-float(exact.mean())),
        "ratio": math.exp(float((exact - served).mean())),
        "mean_logprob_difference": float(difference.mean()),
        "largest_logprob_difference": float(difference.max()),
    }
    print(json.dumps(figures, indent=1))


def served_logprobs(model: Any, tokenizer: Any, texts: list[Tensor]) -> list[Tensor]:
    """Of each token but the first, as a decoder reads the text."""
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 28)

    async def read(ids: Tensor) -> Tensor:
        root = await decoder.root(ids[:1].tolist())
        try:
            return await root.extend(ids[1:].tolist())
        finally:
            root.release()

    return [decoder.run(read(ids)) for ids in texts]


def exact_logprobs(name: str, texts: list[Tensor]) -> list[Tensor]:
    model, _ = load_model(name, "float32")
    found = []
    with torch.no_grad():
        for ids in texts:
            logits = model(ids[None]).logits[0, :-1]
            found.append(logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0])
    return found


if __name__ == "__main__":
    main()
