"""The kernels inside an engine of your own: a small transformer in plain torch, its keys and values in pages.

    python examples/own_engine.py

The weights are random: the texts mean nothing, the storage and the attention are those of a real model.
"""

import torch
from torch.nn.functional import rms_norm, silu

from tts_kernels import KVPool, KVTree, append_kv, plan, tree_attention

LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM, VOCAB, POSITIONS = 2, 4, 2, 32, 100, 512
HIDDEN = Q_HEADS * HEAD_DIM


class Engine:
    def __init__(self, num_pages: int = 256) -> None:
        torch.manual_seed(0)
        widths = [HIDDEN, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, HIDDEN, 4 * HIDDEN]  # q, k, v, out, up
        self.layers = [
            [
                *(torch.randn(HIDDEN, width) / HIDDEN**0.5 for width in widths),
                torch.randn(4 * HIDDEN, HIDDEN) / 20,
            ]
            for _ in range(LAYERS)
        ]
        self.embeddings = torch.randn(VOCAB, HIDDEN)
        self.positions = torch.randn(POSITIONS, HIDDEN)
        self.tree = KVTree(num_pages)  # which page holds which token of which branch
        self.pool = KVPool(num_layers=LAYERS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, num_pages=num_pages)

    def step(self, branches: list[int], tokens: list[list[int]]) -> torch.Tensor:
        """One forward over tokens[i] of branches[i]: logits [B, VOCAB] behind the last token of each."""
        new = self.tree.append(branches, tokens)
        self.pool.copy(torch.from_numpy(new.copies))  # tails that stop being shared
        slots = torch.from_numpy(new.slots)  # where the new keys and values go
        tables, lengths = self.tree.block_tables(branches)
        counts = torch.tensor([len(some) for some in tokens], dtype=torch.int32)
        work = plan(tables, lengths, counts)  # finds what the branches share; serves all layers
        places = [torch.arange(end - len(some), end) for end, some in zip(lengths, tokens, strict=True)]
        x = self.embeddings[[token for some in tokens for token in some]] + self.positions[torch.cat(places)]
        for layer, (q, k, v, out, up, down) in enumerate(self.layers):
            h, pages = rms_norm(x, [HIDDEN]), self.pool.layer(layer)
            append_kv(
                (h @ k).view(-1, KV_HEADS, HEAD_DIM), (h @ v).view(-1, KV_HEADS, HEAD_DIM), *pages, slots
            )
            attended, _ = tree_attention((h @ q).view(-1, Q_HEADS, HEAD_DIM), *pages, work)
            x = x + attended.flatten(1) @ out
            x = x + silu(rms_norm(x, [HIDDEN]) @ up) @ down
        return rms_norm(x[counts.cumsum(0) - 1], [HIDDEN]) @ self.embeddings.T / HIDDEN**0.5


def main(num_branches: int = 16, steps: int = 24) -> tuple[Engine, list[int], torch.Tensor]:
    engine = Engine()
    prompt = engine.tree.create()
    logits = engine.step([prompt], [list(range(90))])
    branches, logits = engine.tree.fork(prompt, num_branches), logits.expand(num_branches, -1)
    engine.tree.release(prompt)  # its pages stay for as long as a fork holds them
    for _ in range(steps):
        drawn = torch.multinomial(logits.softmax(-1), 1)
        logits = engine.step(branches, drawn.tolist())
    stats = engine.tree.stats()
    print(f"{stats.logical_tokens} tokens of {num_branches} branches in {stats.unique_tokens} slots")
    return engine, branches, logits


if __name__ == "__main__":
    main()
