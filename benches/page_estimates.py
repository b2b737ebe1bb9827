"""Estimates a page's attention from summaries of its keys, for `benches.sparse_frontier`.

An estimate maps keys and scaled queries to the logit of a page, minus ln 16: it approximates the log-sum-exp
of the logits of the page's tokens. The code is written for clarity, in float32, and does not store the
summaries; only values kept in few bits are rounded accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PAGE = 16
Logits = Callable[[Tensor, Tensor], Tensor]
Channels = Callable[[int], Tensor]  # of a head_dim those that are kept


class Estimate(NamedTuple):
    """bits: of a page's summary, for each channel; the keys and values of a bfloat16 page have 512."""

    name: str
    bits: float
    logits: Logits  # keys [P, 16, H, d], queries [T, H, G, d] -> [H, T, G, P]


def products(vectors: Tensor, q: Tensor) -> Tensor:
    """vectors: [P, n, H, d], q: [T, H, G, d] -> [H, T, G, P, n]."""
    return torch.einsum("pnhd,thgd->htgpn", vectors, q)


def log_mean_exp(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1) - math.log(logits.shape[-1])


def mean(k: Tensor, q: Tensor) -> Tensor:
    return products(k.mean(1, keepdim=True), q)[..., 0]


def bound(k: Tensor, q: Tensor) -> Tensor:
    """Quest."""
    least, most = k.amin(1, keepdim=True), k.amax(1, keepdim=True)
    return (products(least, q.clamp(max=0)) + products(most, q.clamp(min=0)))[..., 0]


def parts(count: int, bits: int = 0, channels: Channels | None = None) -> Logits:
    """The means of `count` runs of tokens, of some channels or all; rounded to `bits`, one scale a page."""

    def logits(k: Tensor, q: Tensor) -> Tensor:
        if channels is not None:
            k, q = k[..., channels(k.shape[-1])], q[..., channels(k.shape[-1])]
        means = k.unflatten(1, (count, PAGE // count)).mean(2)
        return log_mean_exp(products(rounded(means, bits) if bits else means, q))

    return logits


def best(count: int, channels: Channels) -> Logits:
    """The largest product with the means of `count` runs of tokens, of some channels."""

    def logits(k: Tensor, q: Tensor) -> Tensor:
        kept = channels(k.shape[-1])
        return products(k[..., kept].unflatten(1, (count, PAGE // count)).mean(2), q[..., kept]).amax(-1)

    return logits


def slow(share: float) -> Channels:
    """The pairs (c, c + d / 2) that rotary embeddings turn the least from token to token."""

    def channels(d: int) -> Tensor:
        first = torch.arange(d // 2 - round(share * d / 2), d // 2)
        return torch.cat([first, first + d // 2])

    return channels


def fast(d: int) -> Tensor:
    """The half of the channels that `slow(1 / 2)` leaves out."""
    return torch.cat([torch.arange(d // 4), torch.arange(d // 4) + d // 2])


def keys(bits: int) -> Logits:
    """Every key, rounded to `bits` with a scale and an offset for each channel of the page."""
    return lambda k, q: log_mean_exp(products(rounded(k, bits, dims=(1,)), q))


def rounded(x: Tensor, bits: int, dims: tuple[int, ...] = (1, 3)) -> Tensor:
    least, most = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    step = ((most - least) / (2**bits - 1)).clamp(min=1e-9)
    return ((x - least) / step).round() * step + least


def signs(k: Tensor, q: Tensor) -> Tensor:
    """Mean and mean deviation of 8 bits, and for each key on which side of the mean each channel lies."""
    mean = k.mean(1, keepdim=True)
    centre, off = rounded(mean, 8), rounded((k - mean).abs().mean(1, keepdim=True), 8)
    return log_mean_exp(products(torch.where(k >= centre, centre + off, centre - off), q))


def gaussian(k: Tensor, q: Tensor) -> Tensor:
    """As if keys were drawn from a normal distribution with the mean and variance of each channel."""
    variance = k.var(1, correction=0, keepdim=True)
    return (products(k.mean(1, keepdim=True), q) + products(variance, q.square()) / 2)[..., 0]


def ranged(weight: float) -> Logits:
    """The mean's logit, raised by that share of what half the range of each channel could add."""

    def logits(k: Tensor, q: Tensor) -> Tensor:
        half = (k.amax(1, keepdim=True) - k.amin(1, keepdim=True)) / 2
        return (products(k.mean(1, keepdim=True), q) + weight * products(half, q.abs()))[..., 0]

    return logits


def middle(weight: float) -> Logits:
    """The bound, with so much of its range: 1 is the bound, 0 the logit of the middle of each channel."""

    def logits(k: Tensor, q: Tensor) -> Tensor:
        least, most = k.amin(1, keepdim=True), k.amax(1, keepdim=True)
        return (products((least + most) / 2, q) + weight * products((most - least) / 2, q.abs()))[..., 0]

    return logits


def farthest(k: Tensor, q: Tensor) -> Tensor:
    """The key farthest from the mean, and the mean of the others."""
    x = k.transpose(1, 2)
    key = _farthest(x, (x - x.mean(2, keepdim=True)).square().sum(-1)).transpose(1, 2)
    others = (k.sum(1, keepdim=True) - key) / (PAGE - 1)
    logits = torch.cat([products(key, q), products(others, q) + math.log(PAGE - 1)], -1)
    return logits.logsumexp(-1) - math.log(PAGE)


def clusters(count: int, bits: int = 0) -> Logits:
    """So many means of keys that lie together, and how many each is of: 4 of Lloyd's steps from far apart."""

    def logits(k: Tensor, q: Tensor) -> Tensor:
        x = k.transpose(1, 2)  # [P, H, 16, d]
        centres = _farthest(x, (x - x.mean(2, keepdim=True)).square().sum(-1))
        distance = (x - centres).square().sum(-1)
        for _ in range(count - 1):
            centres = torch.cat([centres, _farthest(x, distance)], 2)
            distance = torch.minimum(distance, (x - centres[:, :, -1:]).square().sum(-1))
        for _ in range(4):
            members = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(-1), count).to(x.dtype)
            counts = members.sum(2)  # [P, H, count]
            means = members.transpose(2, 3) @ x / counts.clamp(min=1)[..., None]
            centres = torch.where(counts[..., None] > 0, means, centres)
        kept = centres.transpose(1, 2)
        kept = rounded(kept, bits) if bits else kept
        weighted = products(kept, q) + counts.log().transpose(0, 1)[:, None, None]
        return weighted.logsumexp(-1) - math.log(PAGE)

    return logits


def _farthest(x: Tensor, distance: Tensor) -> Tensor:
    """Of keys [P, H, 16, d] that of the largest distance [P, H, 16]: [P, H, 1, d]."""
    index = distance.argmax(2, keepdim=True)[..., None]
    return x.take_along_dim(index.expand(*index.shape[:-1], x.shape[-1]), 2)


def exact(k: Tensor, q: Tensor) -> Tensor:
    return log_mean_exp(products(k, q))


ESTIMATES = {
    e.name: e
    for e in (
        Estimate("exact", 256, exact),
        Estimate("mean", 16, mean),
        Estimate("minmax", 32, bound),
        Estimate("quarters", 32, best(4, slow(1 / 2))),
        Estimate("4 means of 4, slow half", 32, parts(4, channels=slow(1 / 2))),
        Estimate("4 means of 4, slow quarter", 16, parts(4, channels=slow(1 / 4))),
        Estimate("4 means of 4, fast half", 32, parts(4, channels=fast)),
        Estimate("4 means of 4, 8 bits", 32, parts(4, 8)),
        Estimate("4 means of 4, 4 bits", 16, parts(4, 4)),
        Estimate("8 means of 2, 4 bits", 32, parts(8, 4)),
        Estimate("8 means of 2, slow half, 8 bits", 32, parts(8, 8, slow(1 / 2))),
        Estimate("8 means of 2, slow quarter", 32, parts(8, channels=slow(1 / 4))),
        Estimate("2 means of 8", 32, parts(2)),
        Estimate("2 clusters", 32, clusters(2)),
        Estimate("4 clusters, 8 bits", 32, clusters(4, 8)),
        Estimate("mean and farthest key", 32, farthest),
        Estimate("mean and 0.4 half ranges", 32, ranged(0.4)),
        Estimate("minmax, 0.4 of the range", 32, middle(0.4)),
        Estimate("mean and variance", 32, gaussian),
        Estimate("signs about the mean, 8 bits", 32, signs),
        Estimate("keys of 2 bits", 64, keys(2)),
    )
}
