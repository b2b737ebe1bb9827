"""Chooses the parts of a decoder that serve a model where it is, and assembles them."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch

from tts_kernels import KVTree
from tts_kernels.checks import instance, shown

from ..core.prompts import PromptReader
from ..model.agreement.self_check import SelfCheck, check_agreement
from ..model.device_steps import DeviceSteps
from ..model.hf import HFEngine
from ..model.host_steps import HostSteps
from ..model.parallel.engine import SplitEngine, is_split, split_engine
from ..model.parallel.ranks import Ranks
from ..model.parallel.steps import FollowerSteps, LeaderSteps
from ..model.sparse import SparseConfig, check_sparse
from ..model.support.features import refuse_sparse
from ..version import package_version
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
    ranks: Ranks | None,
) -> tuple[Runtime, SelfCheck | None]:
    """Builds what `TreeDecoder` runs on from its arguments; also returns the self-check, if there was one."""
    engine: HFEngine
    if ranks is None:
        engine, self_check = _whole_engine(model, device, pack_weights=pack_weights, check=check)
    else:
        unserved = {"kv_offload": kv_offload, "sparse": sparse, "compress": compress, "kv_dtype": kv_dtype}
        with ranks.together("the decoder's arguments"):
            _refuse_under_mesh(model, unserved | {"track_mass": track_mass or None}, kv_bytes)
        settings = {"max_batch_tokens": max_batch_tokens, "check": check, "tts-kernels": package_version()}
        engine, self_check = split_engine(
            model, ranks, device, pack_weights=pack_weights, check=check, settings=settings
        )
    if sparse is not None:
        check_sparse(sparse, engine.kv_shape.num_layers)
        refuse_sparse(engine.model, engine.calls)
    on_host = _runs_on_host(engine.device)
    summaries = None if sparse is None else sparse.summaries
    pool = make_pool(engine, kv_bytes, kv_dtype, summaries, on_host=on_host, ranks=ranks)
    steps: HostSteps | DeviceSteps | LeaderSteps | FollowerSteps
    if on_host:
        steps = HostSteps(engine, pool, track_mass=track_mass)
    elif track_mass:
        raise ValueError(
            f"track_mass: got True, expected False for a model on {engine.device}: steps on a GPU do not "
            "export attention masses"
        )
    else:
        graphs = cuda_graphs and ranks is None
        steps = DeviceSteps(engine, pool, max_batch_tokens=max_batch_tokens, graphs=graphs)
    if isinstance(engine, SplitEngine):
        steps = (LeaderSteps if engine.ranks.leads else FollowerSteps)(engine, steps)
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


def _whole_engine(
    model: Any, device: str | torch.device | None, *, pack_weights: bool, check: bool
) -> tuple[HFEngine, SelfCheck | None]:
    if isinstance(model, torch.nn.Module) and is_split(model):
        raise ValueError(
            "model: got one whose weights were split over ranks for another decoder, expected a whole one: "
            "load it anew"
        )
    engine = HFEngine(model, device, pack_weights=pack_weights)
    with engine.weights.lock:
        return engine, check_agreement(engine, on_host=_runs_on_host(engine.device)) if check else None


def _refuse_under_mesh(model: Any, given: dict[str, Any], kv_bytes: int | KVBudget | None) -> None:
    """Raises ValueError, naming the argument, for what the ranks of a mesh do not support."""
    if isinstance(model, torch.nn.Module) and is_split(model):
        raise ValueError(
            "model: got one whose weights were split over ranks already, expected a whole one: load it anew"
        )
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}: got {shown(value)} beside device_mesh, expected none: it is not served where a "
                "model is split over ranks"
            )
    if isinstance(kv_bytes, KVBudget):
        raise ValueError("kv_bytes: got a KVBudget beside device_mesh, expected an int, the bytes of a rank")


def _runs_on_host(device: torch.device) -> bool:
    """Whether the CPU's kernels and page layout serve, rather than a GPU's."""
    return device.type == "cpu"
