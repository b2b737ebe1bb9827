"""The parts of a decoder: which serve a model where it lies, and how they are put together."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch

from tts_kernels import KVTree
from tts_kernels.checks import instance

from ..core.prompts import PromptReader
from ..model.agreement.self_check import SelfCheck, check_agreement
from ..model.device_steps import DeviceSteps
from ..model.hf import HFEngine
from ..model.host_steps import HostSteps
from ..model.sparse import SparseConfig, check_sparse
from ..model.support.features import refuse_sparse
from .compression import refuse_compression
from .compression_rule import Compression
from .kv_budget import KVBudget, KVShare
from .offload import KVHolder, KVOffload, Offload, make_places
from .pool import make_pool
from .runtime import Runtime


def assemble(
    model: Any,
    tokenizer: Any,
    *,
    device: str | torch.device | None,
    kv_bytes: int | KVBudget | None,
    kv_dtype: torch.dtype | None,
    kv_offload: KVOffload | None,
    max_batch_tokens: int,
    cuda_graphs: bool,
    track_mass: bool,
    sparse: SparseConfig | None,
    compress: Compression | None,
    pack_weights: bool,
    check: bool,
) -> tuple[Runtime, SelfCheck | None]:
    """What `TreeDecoder` runs on, by its arguments, and what the comparison found, if there was one."""
    engine = HFEngine(model, device, pack_weights=pack_weights)
    if sparse is not None:
        check_sparse(sparse, engine.kv_shape.num_layers)
        refuse_sparse(engine.model, engine.calls)
    on_host = _runs_on_host(engine.device)
    with engine.weights.lock:
        self_check = check_agreement(engine, on_host=on_host) if check else None
    summaries = None if sparse is None else sparse.summaries
    pool = make_pool(engine, kv_bytes, kv_dtype, summaries, on_host=on_host)
    steps: HostSteps | DeviceSteps
    if on_host:
        steps = HostSteps(engine, pool, track_mass=track_mass)
    elif track_mass:
        raise ValueError(
            f"track_mass: got True, expected False for a model on {engine.device}: steps on a GPU do not "
            "export attention masses"
        )
    else:
        steps = DeviceSteps(engine, pool, max_batch_tokens=max_batch_tokens, graphs=cuda_graphs)
    holders: WeakSet[KVHolder] = WeakSet()
    tree, offload = KVTree(pool.num_pages, pool.page_size), None
    if kv_offload is not None:
        places = make_places(pool, instance("kv_offload", kv_offload, KVOffload))
        tree = KVTree(pool.num_pages, pool.page_size, len(places))
        offload = Offload(tree, pool, places, holders)
    own = KVBudget(pool.num_pages * pool.page_bytes)
    budget = kv_bytes if isinstance(kv_bytes, KVBudget) else own
    runtime = Runtime(
        engine=engine,
        steps=steps,
        tree=tree,
        pool=pool,
        kv=KVShare(budget, tree, pool.page_bytes, offload),
        tokenizer=tokenizer,
        reader=PromptReader(tokenizer, engine.config.vocab_size),
        sparse=sparse,
        max_batch_tokens=max_batch_tokens,
        max_positions=engine.max_positions,
        eos_token_ids=engine.eos_token_ids,
        weights_epoch=engine.weights.epoch,
        track_mass=track_mass,
        compress=compress,
        holders=holders,
    )
    if compress is not None:
        instance("compress", compress, Compression)
        refuse_compression(runtime)
    return runtime, self_check


def _runs_on_host(device: torch.device) -> bool:
    """Whether the CPU's kernels and their layout of pages serve, or those of GPUs."""
    return device.type == "cpu"
