from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Int32Array = npt.NDArray[np.int32]
IntegerArray = npt.NDArray[np.integer]

TILE_PAGES: int
TAIL_TOKENS: int

class Append:
    @property
    def slots(self) -> Int32Array: ...
    @property
    def copies(self) -> Int32Array: ...

class TreeStats:
    @property
    def branches(self) -> int: ...
    @property
    def pins(self) -> int: ...
    @property
    def logical_tokens(self) -> int: ...
    @property
    def evicted_tokens(self) -> int: ...
    @property
    def unique_tokens(self) -> int: ...
    @property
    def resident_pages(self) -> int: ...
    @property
    def peak_pages(self) -> int: ...
    @property
    def fragmentation(self) -> float: ...

class KVTree:
    def __init__(self, num_pages: int, page_size: int = 16) -> None: ...
    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def free_pages(self) -> int: ...
    def create(self) -> int: ...
    def fork(self, branch: int, n: int = 1, at: int | None = None) -> list[int]: ...
    def append(
        self,
        branches: Sequence[int] | IntegerArray,
        tokens: Sequence[Sequence[int] | IntegerArray],
    ) -> Append: ...
    def truncate(self, branch: int, length: int) -> None: ...
    def release(self, branch: int) -> None: ...
    def evict(self, branches: Sequence[int] | IntegerArray, columns: Sequence[int] | IntegerArray) -> int: ...
    def length(self, branch: int) -> int: ...
    def tokens(self, branch: int) -> Int32Array: ...
    def pin(self, branch: int, at: int | None = None) -> int: ...
    def unpin(self, pin: int) -> None: ...
    def match(self, tokens: Sequence[int] | IntegerArray) -> tuple[int, int] | None: ...
    def block_tables(self, branches: Sequence[int] | IntegerArray) -> tuple[Int32Array, Int32Array]: ...
    def pages_needed(self, branch: int, n: int) -> int: ...
    def stats(self) -> TreeStats: ...

def plan(
    block_tables: Int32Array,
    lengths: Int32Array,
    query_lens: Int32Array | None,
    page_size: int,
    query_block: int,
) -> tuple[Int32Array, int, int, int, int]: ...

class WorkPlanner:
    def __init__(
        self,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        kv_bytes: int,
        max_height: int,
        num_sms: int,
        page_size: int,
        num_pages: int,
        branch_invariant: bool,
    ) -> None: ...
    @property
    def stamp(self) -> int: ...
    @property
    def max_columns(self) -> int: ...
    def counts(self) -> list[int]: ...
    def update(
        self,
        block_tables: Int32Array,
        lengths: Int32Array,
        query_lens: Int32Array | None,
        page_size: int,
        capacity: tuple[int, int, int, int, int] | None,
    ) -> bool: ...
    def write(self, buffer: int, size: int, capacity: tuple[int, int, int, int, int], stamp: int) -> int: ...

class DType:
    float32: DType
    bfloat16: DType
    int8: DType

class Forms:
    def __init__(self, torch: ModuleType, direct: bool) -> None: ...
    def look(self, args: tuple[Any, ...]) -> Any: ...
    def find(self, args: tuple[Any, ...]) -> Any: ...
    def wants_derivative(self, args: tuple[Any, ...]) -> bool: ...
    def learn(self, args: tuple[Any, ...], footprint: Any) -> None: ...

class Places:
    def __init__(self, tensors: Sequence[Tensor]) -> None: ...
    def hold(self) -> bool: ...
    def overlap(self, tensor: Tensor) -> bool: ...

class KVView:
    def __init__(
        self, k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None, layers: int = 0
    ) -> None: ...

class SummaryView:
    def __init__(self, summaries: Tensor | None, layers: int = 0) -> None: ...

class TokenRows:
    def __init__(self, rows: Tensor, heads: bool = True) -> None: ...

class PackedMatrix:
    def __init__(self, panels: int, num_panels: int, bias: int) -> None: ...

class DecoderLayer:
    def __init__(
        self,
        norms: tuple[int, int],
        head_norms: tuple[int, int],
        qkv: PackedMatrix,
        o: PackedMatrix,
        gate_up: PackedMatrix,
        down: PackedMatrix,
        scale: float,
        window: int,
    ) -> None: ...

class DecoderShape:
    def __init__(self, hidden: int, heads: tuple[int, int, int], weight_dtype: DType, eps: float) -> None: ...

class Decoder:
    def __init__(
        self, shape: DecoderShape, layers: list[DecoderLayer], norm: int, head: PackedMatrix | None
    ) -> None: ...
    def run(
        self,
        x: int,
        cos_sin: tuple[int, int],
        row_dtype: DType,
        kv: KVView,
        layer_strides: tuple[int, int],
        summaries: SummaryView,
        slots: int,
        plan: tuple[int, int],
        tokens: int,
        states: int,
        rows: tuple[int, int],
        logits_stride: tuple[int, int],
        num_threads: int,
    ) -> None: ...

def decoder_layers_seconds() -> list[float]: ...
def append_kv(
    kv: KVView,
    k: TokenRows,
    v: TokenRows,
    slots: int,
    num_tokens: int,
    summaries: SummaryView,
    num_threads: int,
) -> None: ...
def copy_pages(
    kv: KVView,
    num_layers: int,
    layer_strides: tuple[int, int],
    copies: int,
    num_copies: int,
    summaries: SummaryView,
    num_threads: int,
) -> None: ...
def gather_kv(
    kv: KVView,
    block_table: int,
    num_table_pages: int,
    length: int,
    k: TokenRows,
    v: TokenRows,
    num_threads: int,
) -> None: ...
def tree_attention(
    kv: KVView,
    plan: tuple[int, int],
    q: TokenRows,
    rows_heads: tuple[int, int],
    out: int,
    lse: int,
    scale: float,
    window: int,
    logits_soft_cap: float,
    mask: tuple[int, int],
    mass: tuple[int, int],
    num_threads: int,
) -> None: ...
def score_pages(
    summaries: SummaryView,
    pages: tuple[int, int, int],
    summary_dtype: DType,
    plan: tuple[int, int],
    q: TokenRows,
    rows_heads: tuple[int, int],
    scale: float,
    scores: tuple[int, int],
    num_threads: int,
) -> None: ...
def count_selected(
    plan: tuple[int, int], mask: tuple[int, int], heads_rows: tuple[int, int]
) -> tuple[int, int]: ...
def packed_linear(
    x: TokenRows,
    rows_inputs_panels: tuple[int, int, int],
    weight: int,
    weight_dtype: DType,
    bias: int,
    out: int,
    out_stride: int,
    end: int,
    num_threads: int,
) -> None: ...
def rms_norm(
    x: TokenRows, weight: int, shape: tuple[int, int], eps: float, out: int, num_threads: int
) -> None: ...
def rotate_qkv(
    qkv: TokenRows,
    shape: tuple[int, int, int, int],
    cos: int,
    sin: int,
    norms: tuple[int, int, float],
    q: TokenRows,
    k: int,
    v: int,
    num_threads: int,
) -> None: ...
def sample_tokens(
    logits: int,
    rows_vocab_stride: tuple[int, int, int],
    params: int,
    seen: tuple[int, int],
    suppressed: tuple[int, int],
    given: int,
    tokens: int,
    numbers: int,
    num_threads: int,
) -> None: ...
def select_top_pages(
    scores: tuple[int, int],
    heads_rows: tuple[int, int],
    plan: tuple[int, int],
    budget: int,
    top_p: float,
    sink_recent: tuple[int, int],
    tail_begin: int,
    groups: int,
    mask: int,
    num_threads: int,
) -> None: ...
def cpu_isa() -> str: ...
def cpu_isa_levels() -> list[tuple[str, bool]]: ...
def set_cpu_isa(name: str | None) -> None: ...
def parallel_backend() -> str: ...
def park_threads() -> None: ...
def unparked_threads() -> set[int]: ...

cuda_archs: tuple[str, ...]  # as CMake names them; () in a build without CUDA kernels

class cuda:  # a module, in a build with CUDA kernels only  # noqa: N801
    class Pages:
        def __init__(
            self,
            k: int,
            v: int,
            k_strides: Sequence[int],
            v_strides: Sequence[int],
            shape: Sequence[int],
            element_bytes: int,
        ) -> None: ...

    class Rows:
        def __init__(self, data: int, strides: tuple[int, int]) -> None: ...

    class WorkLaunch:
        def __init__(
            self,
            work: int,
            partials: int,
            capacity: tuple[int, int, int, int, int],
            num_items: int,
            num_merges: int,
        ) -> None: ...

    @staticmethod
    def append_kv(
        pages: cuda.Pages, k: cuda.Rows, v: cuda.Rows, slots: int, num_tokens: int, stream: int
    ) -> None: ...
    @staticmethod
    def copy_pages(
        pages: cuda.Pages,
        num_layers: int,
        layer_strides: tuple[int, int],
        copies: int,
        num_copies: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def tree_attention(
        pages: cuda.Pages,
        q: cuda.Rows,
        num_q_rows: int,
        num_q_heads: int,
        bfloat16: bool,
        launch: cuda.WorkLaunch,
        out: int,
        lse: int,
        scale: float,
        window: int,
        logits_soft_cap: float,
        stream: int,
    ) -> None: ...
