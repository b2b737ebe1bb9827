"""The decoder: one model, one KV tree, and every search that runs on them in one batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from tts_kernels.checks import instance, shown

from ..core.budget import Budget
from ..core.checks import checked_count
from ..core.constraints.grammars import compile_aside
from ..core.constraints.protocol import Constraint
from ..core.params import SamplingParams
from ..core.prompts import Prompt
from ..core.running import Runner
from ..core.state import BranchState
from ..core.stats import DecoderStats
from ..default_model import DEFAULT_MODEL
from ..model.host_steps import distinct_pages
from ..model.loading import load_model
from ..model.parallel.ranks import Ranks
from ..model.parallel.steps import FollowerSteps, LeaderSteps
from ..model.sparse import SparseConfig
from .assembly import assemble
from .branch import TreeBranch
from .compression_rule import Compression
from .eviction import evict_columns
from .kv_budget import KVBudget, Pin
from .kv_files import load_kv, save_kv
from .offload import KVOffload
from .scheduler import Scheduler

_log = logging.getLogger(__name__)


class TreeDecoder(Runner):
    """Decodes any number of branches of any number of prompts over one shared KV tree.

    Args:
        model: a transformers causal language model, on the CPU in float32 or bfloat16, or on one GPU, where
            float16 works too. It is set to eval mode and otherwise not changed. A model without an LM head (a
            bare model, or one with a class head, whose base model is run) serves `root` and `Branch.read`.
        tokenizer: its tokenizer.
        device: moves the model there first; default: where it is.
        kv_bytes: bytes for the KV pages. On the CPU the system commits memory as pages are first used;
            default: a quarter of the machine's or the container's memory. On a GPU memory is allocated at
            once; default: three quarters of what is free. A `KVBudget`, on the CPU only, bounds the sum over
            all decoders that share it.
        kv_dtype: of the KV pages; default: the model's. On the CPU torch.int8 halves the bytes of bfloat16
            but rounds each key and value (see `tts_kernels.append_kv`), in a way that depends on which tokens
            of a page one forward writes: numbers then depend on the chunks of a prompt, and so on the batch.
        kv_offload: where pages go that do not fit into `kv_bytes` while other branches run; they come back
            before their branch runs. Default: all pages must fit. The text is the same either way.
        max_batch_tokens: maximum number of tokens in one forward; longer prompts are fed in chunks beside the
            decoding branches.
        sampling: default parameters of `root`.
        track_mass: track how much attention each branch's pages have drawn, which `evict` uses; CPU only.
        sparse: read only part of the KV pages in decode steps; default: all of them. On a GPU such steps run
            without CUDA graphs, and their cost is estimated as if every budget were used up.
        compress: keep the KV of each branch within a budget, as `Branch.compress` does; CPU only.
        pack_weights: on the CPU, run models of the packed families (docs/models.md) on weights in the order
            in which the kernels read them, which makes steps faster. A model from `load_model` has
            only these weights. For another model they are a copy, which doubles the weights' memory. The copy
            is renewed when a weight is replaced or written in place; only a new decoder notices writes
            through `.data` and replaced modules. The model's modules are not called, so hooks added to them
            later do not run. Other models, and models with adapters, layers that others quantised or hooks,
            run through transformers, as all do with False.
        cuda_graphs: on a GPU, capture decode steps as CUDA graphs: one for each of a few batch sizes, at its
            first use.
        check: before serving, compare the model's own plain forward of a few random tokens with the
            decoder's: chunked prefill, a fork, a truncation and decode steps, also over packed weights if
            there are any. An unchanged model is compared once. Modules replaced later are not compared: make
            a new decoder. During the comparison no other thread may run the model, because weights are
            substituted in its modules. False serves a model unchecked, right or wrong.
        device_mesh: a one-dimensional mesh whose ranks hold the model together, each with the KV of its own
            heads. All of them make the decoder with the same arguments; rank 0 searches, the others `follow`.
            The model's modules then hold this rank's part permanently.
        mesh_timeout: seconds of silence after which another rank counts as lost.

    The same seed gives the same text whatever else is in the batch, as far as attention and the matrix
    products allow. On the CPU attention is bitwise independent of the batch, and with packed weights so is
    the whole forward; on a GPU the order of its sums depends on the plan. A GEMM library may round a row
    differently at another batch size. In float32 that moves a log-probability by about 1e-6 and rarely
    changes a token; in bfloat16 tokens do change. In int8 pages a token's rounding depends on the tokens of
    its page computed in the same step, and after `Branch.truncate` still on the tokens that were cut. Sparse
    attention depends on a branch's own history; with shared choices (`SparseConfig.share`), also on the
    branches of its tree in the same step.

    The model may be trained between calls. Each step checks whether its weights were written in place, for
    example by an optimizer or `load_state_dict`, or replaced, modules included (report undetectable changes
    with `weights_changed`). What was computed before is then no longer used: pins are dropped, branches raise
    `StaleKVError` until their `recompute`, pending prompts start over, and a running step ends with
    `StaleKVError` and keeps its tokens. Device, dtype, vocabulary and heads must not change. Forwards run in
    eval mode, whatever the model's mode.

    Attributes:
        keep_hidden: while above 0, each `Step` carries the mean of its last hidden states; this requires
            feeding the step's last token before the step returns. A counter: each search that needs the
            states adds one.
        self_check: the result of the comparison, a `SelfCheck`; None with check=False.

    Raises:
        UnsupportedModelError: the model needs something that the tree attention path does not support, or its
            own forward disagrees with the decoder's.
        MeshError: the ranks of `device_mesh` differ, or lost each other. Later calls may raise it too.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device | None = None,
        kv_bytes: int | KVBudget | None = None,
        kv_dtype: torch.dtype | None = None,
        kv_offload: KVOffload | None = None,
        max_batch_tokens: int = 512,
        sampling: SamplingParams | None = None,
        cuda_graphs: bool = True,
        track_mass: bool = False,
        sparse: SparseConfig | None = None,
        compress: Compression | None = None,
        pack_weights: bool = True,
        check: bool = True,
        device_mesh: DeviceMesh | None = None,
        mesh_timeout: float = 60.0,
    ) -> None:
        max_batch_tokens = checked_count("max_batch_tokens", max_batch_tokens)
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(f"tokenizer: got {type(tokenizer).__name__}, expected one of transformers")
        sampling = SamplingParams() if sampling is None else sampling
        self.sampling = instance("sampling", sampling, SamplingParams)
        self.runtime, self.self_check = assemble(
            model,
            tokenizer,
            device=device,
            kv_bytes=kv_bytes,
            kv_dtype=kv_dtype,
            kv_offload=kv_offload,
            max_batch_tokens=max_batch_tokens,
            cuda_graphs=cuda_graphs,
            track_mass=track_mass,
            sparse=sparse,
            compress=compress,
            pack_weights=pack_weights,
            check=check,
            ranks=None if device_mesh is None else Ranks(device_mesh, mesh_timeout),
        )
        engine = self.runtime.engine
        self.has_lm_head = engine.has_lm_head
        self.hidden_size: int = engine.config.hidden_size
        self.vocab_size: int = engine.config.vocab_size
        self._scheduler = Scheduler(self.runtime)
        _log.info(
            "%s on %s: %s path, %d KV pages; self-check: %s",
            type(engine.model).__name__,
            engine.device,
            "general" if engine.packed is None else "packed",
            self.runtime.pool.num_pages,
            self.self_check,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = DEFAULT_MODEL,
        dtype: str | torch.dtype = "auto",
        *,
        weights: str = "auto",
        device: str | torch.device = "cpu",
        pack_weights: bool = True,
        **options: Any,
    ) -> TreeDecoder:
        """Loads a model with `load_model`: the default's name, a directory, a GGUF file or a hub id."""
        model, tokenizer = load_model(name, dtype, weights=weights, device=device, pack_weights=pack_weights)
        return cls(model, tokenizer, pack_weights=pack_weights, **options)

    @property
    def leads(self) -> bool:
        """Whether this process searches: False on the ranks of a `device_mesh` that follow."""
        return not isinstance(self.runtime.steps, FollowerSteps)

    def follow(self) -> None:
        """Computes this rank's part of what rank 0 runs, until rank 0 closes its decoder.

        Raises:
            RuntimeError: this rank does not follow.
            MeshError: another rank is lost, or this one no longer matches the leader.
        """
        if not isinstance(self.runtime.steps, FollowerSteps):
            raise RuntimeError("follow: got a decoder that leads, expected one of a rank above 0")
        self.runtime.steps.follow()

    def close(self) -> None:
        """Ends stepping and releases the other ranks, on rank 0 of a `device_mesh`; elsewhere does nothing.

        The end of a `with` block, and of the program, closes the decoder too.
        """
        if isinstance(self.runtime.steps, LeaderSteps):
            self.runtime.steps.close()

    def __enter__(self) -> TreeDecoder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def model(self) -> Any:
        return self.runtime.engine.model

    @property
    def tokenizer(self) -> Any:
        return self.runtime.tokenizer

    @property
    def max_positions(self) -> int | None:
        return self.runtime.max_positions

    @property
    def max_kv_tokens(self) -> int:
        """Tokens that the KV pages hold in total, if all pages are full."""
        return self.runtime.pool.num_pages * self.page_size

    @property
    def max_offloaded_tokens(self) -> int:
        """Tokens that the offload places hold in total."""
        return self.runtime.tree.offload_pages * self.page_size

    @property
    def page_size(self) -> int:
        """Tokens of a KV page."""
        return self.runtime.pool.page_size

    @property
    def track_mass(self) -> bool:
        return self.runtime.track_mass

    @property
    def knows_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.runtime.tokenizer, "chat_template", None))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self.runtime.eos_token_ids

    @eos_token_ids.setter
    def eos_token_ids(self, ids: frozenset[int]) -> None:
        self.runtime.eos_token_ids = ids

    @property
    def keep_hidden(self) -> int:
        return self.runtime.keep_hidden

    @keep_hidden.setter
    def keep_hidden(self, count: int) -> None:
        self.runtime.keep_hidden = count

    def token_ids(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens."""
        return self.runtime.reader.ids(text)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Returns the ids that `root` computes for a prompt, with the tokenizer's special tokens."""
        return self.runtime.reader.prompt(prompt)[1]

    # -- branches

    async def compile(self, constraint: Constraint) -> None:
        """Compiles a constraint in a worker thread, and keeps it for all branches that have an equal one.

        `root`, `restore`, `step` and `stream` do so themselves. Call this to find a malformed constraint
        before any work is queued; any event loop may await it. The 32 most recently used ones are kept per
        tokenizer, so that another branch starts with one in microseconds, like a fork. A constraint written
        in Python has nothing to compile.

        Raises:
            ConstraintError: it is malformed, or no text matches it.
            TypeError: it is no constraint, or the tokenizer's tokens do not map to bytes.
        """
        if not callable(getattr(constraint, "start", None)):
            raise TypeError(f"constraint: got {shown(constraint)}, expected a Constraint")
        await compile_aside(constraint, self.runtime.tokenizer)

    async def root(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        budget: Budget | None = None,
        *,
        ids: Sequence[int] | None = None,
    ) -> TreeBranch:
        """Computes a prompt and returns the branch at its end. Resident parts of the prompt are shared.

        Args:
            prompt: text, token ids, or chat messages (dicts of role and content, for the chat template).
            sampling: default: the decoder's.
            budget: shared by every branch forked from this root.
            ids: the ids to compute if they are not `prompt_ids(prompt)`: another tokenization of the text, or
                other options of the chat template. `Branch.prompt` and `question` still come from `prompt`.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or the prompt is empty or has more tokens
                than the model or the KV pool holds (`PromptTooLongError`).
            ConstraintError: the constraint of `sampling` is malformed.
            OutOfPagesError: other branches hold the pages that it needs.
        """
        prompt, tokens = self.runtime.reader.prompt(prompt, ids)
        sampling = self.sampling if sampling is None else instance("sampling", sampling, SamplingParams)
        await compile_aside(sampling.constraint, self.runtime.tokenizer)
        guide = self.runtime.guide(sampling.constraint)
        branch = await TreeBranch.grow(
            self, self._scheduler, prompt, tokens, len(tokens), sampling, sampling.seed, budget
        )
        branch.guide = guide
        return branch

    async def restore(self, state: BranchState, budget: Budget | None = None) -> TreeBranch:
        """Makes a branch from its `Branch.snapshot`, possibly of another run or decoder of the same model.

        Resident tokens are shared, the rest is computed. The random state is the same: the branch draws the
        tokens, and its forks get the seeds, that they would have got. With sparse attention the tokens it had
        drawn are computed like a prompt, so other tokens may follow.

        Args:
            budget: shared by every branch forked from this one; earlier use is not known to it.

        Raises:
            TypeError, ValueError, OutOfPagesError: same as for `root`.
            ConstraintError: its tokens violate its constraint.
        """
        instance("state", state, BranchState)
        tokens = self.runtime.reader.ids(state.tokens)
        await compile_aside(state.sampling.constraint, self.runtime.tokenizer)
        guide = self.runtime.guide(state.sampling.constraint, tokens[state.prompt_length :])
        branch = await TreeBranch.grow(
            self,
            self._scheduler,
            state.prompt,
            tokens,
            state.prompt_length,
            state.sampling,
            state.seed,
            budget,
        )
        branch.restore(state)
        branch.guide = guide
        return branch

    def pin(self, branch: TreeBranch, at: int | None = None) -> Pin:
        """Keeps a prefix resident after its branches are gone; a later `root` that begins with it shares it.

        Takes no page by itself. Pins last while there is room: when pages run out, the least recently used
        pin is dropped first. Making a pin and finding it in a `root` count as uses.

        Args:
            at: position in `branch.tokens`, 1 <= at <= length: `tokens[:at]` are kept, except tokens whose KV
                is not computed yet, such as the last token of a step. Default: all.

        Raises:
            TypeError, ValueError: an argument is out of range or of another decoder, or nothing is computed.
            BranchReleasedError: the branch was released.
            StaleKVError: the model's weights changed since it was computed.
        """
        self._check_own(branch, "branch")
        self.runtime.follow_weights()
        branch.check_computed()
        length = min(branch.kv_length, branch.position("at", at))
        if not length:
            raise ValueError(f"branch {branch.id} has no KV yet: await one of its calls first")
        return self.runtime.kv.pin(branch.id, branch.tokens[:length])

    def save_kv(self, path: str | os.PathLike[str], prefixes: Sequence[TreeBranch | Pin]) -> None:
        """Writes the KV of branches and pins to a file, each page once, replacing an existing file.

        For each, it saves what a prompt could find again: tokens up to the first that was evicted, compacted,
        read sparsely or given as an embedding. `Branch.snapshot` holds what a branch knows beyond its KV.
        Needs as much memory as the file has bytes.

        Raises:
            TypeError, ValueError: a prefix is not this decoder's, is not resident, or has nothing to save.
            KVFileError: the file cannot be written. Nothing is left of it.
            OutOfPagesError: other branches hold the one page that the model's digest needs.
        """
        self.runtime.follow_weights()
        holders = []
        for prefix in prefixes:
            if isinstance(prefix, Pin):
                if self.runtime.kv.pins.get(prefix.id) is not prefix:
                    raise ValueError(f"prefixes: got {prefix}, expected pins that this decoder holds")
            else:
                self._check_own(prefix, "prefixes")
                prefix.check_computed()
            holders.append(prefix.id)
        save_kv(self.runtime, Path(path), holders)

    def load_kv(self, path: str | os.PathLike[str]) -> list[Pin]:
        """Pins what `save_kv` wrote, possibly in another process: a `root` that begins with it shares it.

        The digest tells whether this decoder's model and arithmetic would compute the same KV, bit for bit.
        If there is no room for all pins, those loaded last displace others.

        Raises:
            KVFileError: there is no such file, it is damaged, or its KV is another model's.
            OutOfPagesError: other branches hold the pages that it needs. Nothing of it is left.
        """
        self.runtime.follow_weights()
        return load_kv(self.runtime, Path(path))

    def evict(self, branches: Sequence[TreeBranch], keep: int, *, sink: int = 1, recent: int = 4) -> int:
        """Drops the branches' KV pages that have drawn the least attention; see `select.evicted_columns`.

        Only pages that all of the branches hold are dropped, so pass all that share a prefix: a page stays
        resident while any branch holds it, and only branches that evicted the same pages before it share it.
        A branch forked later inherits what its parent lacks. Tokens, text and positions stay as they are, but
        nothing attends to the tokens of an evicted page any more, and no fork or truncation can end in one.
        Masses count from the branch's root on: pages of a prompt that was already resident begin at zero.

        Args:
            keep: pages that each of the branches keeps, at least 1.
            sink: first pages that stay.
            recent: last pages that stay, at least 2, so that a last token can be fed again.

        Returns:
            The number of pages freed.

        Raises:
            TypeError, ValueError: an argument is out of range, a branch is given twice or is of another
                decoder, or a page is pinned.
            BranchReleasedError: a branch was released.
            RuntimeError: the decoder does not track masses, or a branch is waiting for the engine.
        """
        branches = list(branches)
        for branch in branches:
            self._check_own(branch, "branches")
        return evict_columns(self.runtime, branches, keep, sink=sink, recent=recent)

    def resident_bytes(self, branches: Iterable[TreeBranch]) -> int:
        """Returns the KV bytes of the branches' pages, including offloaded ones, each counted once.

        Raises:
            TypeError, ValueError: an entry is no branch, or of another decoder.
            BranchReleasedError: a branch was released.
        """
        branches = list(branches)
        for branch in branches:
            self._check_own(branch, "branches")
        tables, lengths = self.runtime.tree.block_tables([branch.id for branch in branches])
        pool = self.runtime.pool
        places = pool.num_pages + self.runtime.tree.offload_pages
        return distinct_pages(tables, lengths, places, pool.page_size) * pool.page_bytes

    # -- weights

    @property
    def weights_epoch(self) -> int:
        """A number that differs after each change of the model's weights. Reading it checks for a change."""
        self.runtime.follow_weights()
        return self.runtime.weights_epoch

    def weights_changed(self) -> None:
        """Reports a weight change that cannot be detected.

        Such changes are writes through `.data`, as `param.data.copy_`, writes into inference tensors, and
        writes through another library's view of their memory. Also report a change of the numbers outside
        tensors, such as an adapter that was switched off.
        """
        self.runtime.engine.weights.changed()
        self.runtime.follow_weights()

    def stats(self) -> DecoderStats:
        tree, scheduler = self.runtime.tree.stats(), self._scheduler
        page_bytes, offload = self.runtime.pool.page_bytes, self.runtime.kv.offload
        return DecoderStats(
            steps=scheduler.forwards.steps,
            generated_tokens=scheduler.generated_tokens,
            forward_tokens=scheduler.forwards.tokens,
            seconds=scheduler.seconds,
            cost=scheduler.forwards.meter.total,
            branches=tree.branches,
            pins=tree.pins,
            logical_tokens=tree.logical_tokens,
            unique_tokens=tree.unique_tokens,
            resident_bytes=tree.resident_pages * page_bytes,
            offloaded_bytes=tree.offloaded_pages * page_bytes,
            moved_out_bytes=0 if offload is None else offload.moved_out * page_bytes,
            moved_in_bytes=0 if offload is None else offload.moved_in * page_bytes,
            peak_bytes=tree.peak_pages * page_bytes,
            page_bytes=page_bytes,
            page_size=self.page_size,
        )

    # -- checks

    def _check_own(self, branch: TreeBranch, name: str) -> None:
        if not isinstance(branch, TreeBranch):
            raise TypeError(f"{name}: got {type(branch).__name__}, expected {_BRANCHES[name]}")
        if branch.decoder is not self:
            raise ValueError(f"{name}: got branch {branch.id} of another decoder, expected one of this")
        branch.check_live()


_BRANCHES = {
    "branch": "a Branch",
    "branches": "Branch objects",
    "prefixes": "Branch and Pin objects",
}
