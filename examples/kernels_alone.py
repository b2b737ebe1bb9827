"""Kernels without a model: a KV tree, pages in the kernels' layout, and one attention call for all branches.

    python examples/kernels_alone.py

The same keys and values, copied out for each branch, go through torch's own attention for comparison.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from tts_kernels import KVPool, KVTree, gather_kv, plan, tree_attention

Q_HEADS, KV_HEADS, HEAD_DIM = 6, 2, 64


def main(prompt_tokens: int = 100, num_branches: int = 8) -> float:
    torch.manual_seed(0)
    tree = KVTree(num_pages=64)  # which page holds which token of which branch
    pool = KVPool(num_layers=1, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, num_pages=64)

    def append(branches: list[int], tokens: list[list[int]]) -> None:
        new = tree.append(branches, tokens)
        pool.copy(torch.from_numpy(new.copies))  # partly filled pages that stop being shared
        k, v = torch.randn(2, len(new.slots), KV_HEADS, HEAD_DIM)
        pool.append(0, k, v, torch.from_numpy(new.slots))

    prompt = tree.create()
    append([prompt], [list(range(prompt_tokens))])
    branches = tree.fork(prompt, num_branches)
    append(branches, [[token] for token in range(num_branches)])

    tables, lengths = tree.block_tables(branches)
    q = torch.randn(num_branches, Q_HEADS, HEAD_DIM)
    out, _ = tree_attention(q, *pool.layer(0), plan(tables, lengths))  # reads each shared page once

    largest = 0.0
    for i, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        k, v = gather_kv(*pool.layer(0), torch.from_numpy(table), int(length))  # [tokens, heads, head_dim]
        expected = scaled_dot_product_attention(
            q[i, :, None], k.transpose(0, 1), v.transpose(0, 1), enable_gqa=True
        )
        largest = max(largest, float((out[i] - expected[:, 0]).abs().max()))
    stats = tree.stats()
    print(f"{stats.logical_tokens} tokens in {stats.unique_tokens} slots")
    print(f"largest difference from torch: {largest:.1e}")
    return largest


if __name__ == "__main__":
    main()
