"""Error rates of the self-check, over a tiny model of every causal class of transformers in three states.

`python -m benches.self_check_rates` takes about ten minutes on two cores. A model is

* accepted, and a miss if longer texts, other texts or, for models at their initial weights, drawn weights
  show that it is served incorrectly;
* refused by the self-check, and a false refusal if the same comparison, with check=False, shows that it would
  have been served correctly;
* or refused because of a feature's name before any comparison, which is only counted.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Annotated, Any

import torch
import typer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from tts_decode import TreeDecoder, UnsupportedModelError

from benches.model_table import IdsOnly
from benches.tiny_architectures import MODEL_TYPES, VOCAB, randomise, tiny_config, tiny_model

_KV_BYTES = 1 << 24
_LENGTH = 160  # tokens, several times what the self-check looks at
_LATE = 40  # a window that no text of the self-check fills
_NATS = 1e-3  # a log-probability is wrong from here on; rounding stays below 1e-4
_SHARE = 0.02  # of tokens that may be wrong, as rounding can choose another expert
STATES = "drawn weights", "initial weights", "long windows"


def build(model_type: str, state: str) -> Any:
    if state == "long windows":
        config = tiny_config(model_type)
        text = config.get_text_config(decoder=True)
        names = (
            "sliding_window",
            "sliding_window_size",
            "attention_chunk_size",
            "window_size",
            "local_attention",
        )
        options = {name: _LATE for name in names if isinstance(getattr(text, name, None), int)}
        return tiny_model(model_type, options=options) if options else None
    if state == "drawn weights":
        return tiny_model(model_type)
    config = tiny_config(model_type)
    torch.manual_seed(0)
    if hasattr(config, "decoder"):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config.decoder).eval()
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def share_of_wrong(model: Any) -> float:
    """Tokens, of two long branches that share a part, whose log-probability is not the plain forward's."""
    decoder = TreeDecoder(model, IdsOnly(), kv_bytes=_KV_BYTES, max_batch_tokens=23, check=False)
    ids = torch.randint(3, VOCAB, (2, _LENGTH), generator=torch.Generator().manual_seed(99))
    ids[1, :100] = ids[0, :100]

    async def run() -> list[torch.Tensor]:
        root = await decoder.root(ids[0, :50].tolist())
        shared = await root.extend(ids[0, 50:100].tolist())
        rest = []
        for branch, text in zip(root.fork(2), ids, strict=True):
            await branch.extend(text[-7:].tolist())
            branch.truncate(100)
            first = await branch.extend(text[100:150].tolist())
            single = [await branch.extend([token]) for token in text[150:].tolist()]
            rest.append(torch.cat([shared, first, *single]))
        return rest

    got = torch.stack(decoder.run(run()))
    with torch.no_grad():
        plain = torch.stack([model(input_ids=text[None], use_cache=False).logits[0] for text in ids]).float()
    expected = plain.log_softmax(-1)[:, 49:-1].gather(-1, ids[:, 50:, None])[..., 0]
    return float(((got - expected).abs() > _NATS).float().mean())


def outcome(model_type: str, state: str) -> str | None:
    """None where there is nothing to try."""
    try:
        model = build(model_type, state)
    except Exception:  # what cannot be made so small is in docs/models.md
        return None
    if model is None:
        return None
    try:
        TreeDecoder(model, IdsOnly(), kv_bytes=_KV_BYTES)
        accepted = True
    except UnsupportedModelError:
        accepted = False
        try:
            TreeDecoder(model, IdsOnly(), kv_bytes=_KV_BYTES, check=False)
        except UnsupportedModelError:
            return "refused by name"
    if state == "initial weights":
        randomise(model)
    right = share_of_wrong(model) <= _SHARE
    if accepted:
        return "accepted" if right else "miss"
    return "false refusal" if right else "refused by the self-check"


def main(types: Annotated[list[str] | None, typer.Argument(help="Default: all.")] = None) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for state in STATES:
        counts: Counter[str] = Counter()
        for model_type in types or MODEL_TYPES:
            found = outcome(model_type, state)
            if found is not None:
                counts[found] += 1
            if found in ("miss", "false refusal"):
                print(f"{model_type}, {state}: {found}", flush=True)
        print(
            f"{state}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}", flush=True
        )


if __name__ == "__main__":
    typer.run(main)
