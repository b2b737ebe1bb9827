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
    """Work that KVTree.append leaves to its caller: first the copies, then the writes."""

    @property
    def slots(self) -> Int32Array:
        """int32 [T]: slot of each new token, page * page_size + offset, in argument order."""
    @property
    def copies(self) -> Int32Array:
        """int32 [C, 2]: (source page, target page) for each partly filled last page copied on write."""

class TreeStats:
    """Snapshot of a KVTree's counters."""

    @property
    def branches(self) -> int:
        """Number of live branches."""
    @property
    def pins(self) -> int:
        """Number of live pins."""
    @property
    def logical_tokens(self) -> int:
        """Sum of the branch lengths."""
    @property
    def evicted_tokens(self) -> int:
        """Tokens counted in logical_tokens whose page was evicted; no branch sees them."""
    @property
    def unique_tokens(self) -> int:
        """Distinct slots visible to a branch or a pin."""
    @property
    def resident_pages(self) -> int:
        """Pages of the pool held by a branch or a pin."""
    @property
    def offloaded_pages(self) -> int:
        """Held pages that are offloaded."""
    @property
    def peak_pages(self) -> int:
        """Highest number of pages resident at once so far."""
    @property
    def fragmentation(self) -> float:
        """Fraction of the slots in resident and offloaded pages that no branch or pin sees."""

class KVTree:
    """Branches over shared, reference-counted pages of a fixed-size pool.

    Stores ids only; the caller stores K and V. Position p of a branch is slot p % page_size of page
    block_table[p // page_size]; that entry is -1 where the page was evicted. Branches forked from one another
    share all full pages. A partly filled last page is copied when a branch appends to it while another branch
    or pin holds it.

    Branch ids are unique within the process: an id that was released or belongs to another tree raises
    ValueError. A call that raises leaves the tree unchanged. Not thread-safe."""

    def __init__(self, num_pages: int, page_size: int = 16, offload_pages: int = 0) -> None:
        """Makes a tree without branches. Its pool has pages 0 to num_pages - 1 of page_size tokens each; at
        most offload_pages further pages can be offloaded at once."""
    @property
    def num_pages(self) -> int:
        """Number of pages in the pool."""
    @property
    def page_size(self) -> int:
        """Tokens per page."""
    @property
    def free_pages(self) -> int:
        """Number of pages in the pool that no branch or pin holds."""
    @property
    def offload_pages(self) -> int:
        """Number of pages that can be offloaded at once."""
    @property
    def offloaded_pages(self) -> int:
        """Number of pages offloaded now."""
    def create(self) -> int:
        """Creates an empty branch and returns its id."""
    def fork(self, branch: int, n: int = 1, at: int | None = None) -> list[int]:
        """Creates n branches that hold the first `at` tokens (default: all) of a branch or pin.

        Forking takes no pages. A length given to fork(), pin() or truncate() must not end in an evicted or
        compacted page."""
    def append(
        self,
        branches: Sequence[int] | IntegerArray,
        tokens: Sequence[Sequence[int] | IntegerArray],
    ) -> Append:
        """Appends tokens[i] to branches[i], for all i or none.

        The caller does the returned copies before it writes the new tokens' K and V to the slots. Among
        branches that share a partly filled last page, the last one to append writes in place; the others get
        copies.

        Raises OutOfPagesError, before anything changes, if too few pages are free."""
    def truncate(self, branch: int, length: int) -> None:
        """Drops all tokens from position `length` onward."""
    def release(self, branch: int) -> None:
        """Ends a branch. Pages without another holder are freed at once."""
    def evict(self, branches: Sequence[int] | IntegerArray, columns: Sequence[int] | IntegerArray) -> int:
        """Drops the pages in block-table columns `columns` from each branch, for all branches or none.

        The entries become -1, also in later forks of the branches. Positions do not change. Returns the
        number of pages freed: those that no other branch holds.

        Raises ValueError for a column that a branch does not have, its last column, a column already evicted
        from it, and a page that a pin holds."""
    def compact(self, branch: int, columns: Sequence[int] | IntegerArray, keep: int) -> None:
        """Keeps the pages of the last `keep` of these columns of a branch and drops the others.

        Before the call, the caller has moved the K and V to keep, from all these columns, into the pages that
        stay; each layer may keep different tokens. Positions do not change. A compacted page matches no
        prompt; no fork, pin or truncation may end in one; later forks of the branch share it.

        Raises ValueError unless the columns ascend, lie before the last one and hold pages without another
        holder, and 1 <= keep < len(columns)."""
    def length(self, branch: int) -> int:
        """Number of tokens in a branch or pin."""
    def tokens(self, branch: int) -> Int32Array:
        """int32 [length]: token ids of a branch or pin; -1 where the page was evicted or compacted."""
    def page_holders(self, branch: int) -> Int32Array:
        """int32 [pages]: number of branches and pins that hold each page of a branch or pin; 0 where the page
        was evicted."""
    def pin(self, branch: int, at: int | None = None) -> int:
        """Keeps the first `at` tokens (default: all) of a branch resident, whatever happens to the branch.

        A pin can be read and forked like a branch, but not appended to, truncated or released. It does not
        count as a branch."""
    def unpin(self, pin: int) -> None:
        """Ends a pin. Pages without another holder are freed at once."""
    def offload(self, pages: Sequence[int] | IntegerArray) -> Int32Array:
        """Moves resident pages out of the pool, for all their holders, and frees their places in it.

        Returns int32 [M, 2]: (page, offload id); offload ids start at num_pages. The caller copies K and V
        there before it appends or reloads anything. An offloaded page can be shared, matched, truncated and
        released like any other, but a branch that ends in one cannot be appended to. A branch must be
        reloaded before a forward.

        Raises OutOfPagesError if fewer than M of the offload_pages places are free, ValueError for a page
        that is not resident."""
    def reload(self, branches: Sequence[int] | IntegerArray) -> Int32Array:
        """Moves the offloaded pages of branches or pins back into the pool, for all their holders.

        Returns int32 [M, 2]: (offload id, page), which the caller copies as after offload(). Raises
        OutOfPagesError, before anything changes, if too few pages are free."""
    def match(self, tokens: Sequence[int] | IntegerArray) -> tuple[int, int] | None:
        """Finds the longest resident prefix of `tokens`.

        Returns (branch or pin, length), for fork(id, at=length): the oldest of equally long ones, or None if
        none begins with the first token. An evicted page ends its branch's prefix."""
    def block_tables(self, branches: Sequence[int] | IntegerArray) -> tuple[Int32Array, Int32Array]:
        """(int32 [B, max_pages], int32 [B]): pages and length of each branch or pin. A page is -1 if evicted
        or past the last one, num_pages or more if offloaded."""
    def pages_needed(self, branch: int, n: int) -> int:
        """Upper bound on the pages that appending n tokens to this branch takes."""
    def stats(self) -> TreeStats:
        """Counts over all branches and pins, computed on each call."""

def plan(
    block_tables: Int32Array,
    lengths: Int32Array,
    query_lens: Int32Array | None,
    page_size: int,
    query_block: int,
) -> tuple[Int32Array, int, int, int, int]:
    """tts_kernels.plan on int32 arrays. Returns the plan's buffer, num_queries, max_columns, unique_pages and
    logical_pages. query_lens None: one query per branch."""

class WorkPlanner:
    """Builds work lists for a GPU; tts_kernels.DevicePlanner owns one."""

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
    ) -> None:
        """A planner for one shape of attention heads on a GPU with num_sms multiprocessors."""
    @property
    def stamp(self) -> int:
        """Version of the current plan; a buffer written now holds it."""
    @property
    def max_columns(self) -> int:
        """Largest number of pages that a query sees."""
    def counts(self) -> list[int]:
        """Numbers of items, queries, merges, pages and partials in the plan."""
    def update(
        self,
        block_tables: Int32Array,
        lengths: Int32Array,
        query_lens: Int32Array | None,
        page_size: int,
        capacity: tuple[int, int, int, int, int] | None,
    ) -> bool:
        """Makes a plan; True if the previous plan was only advanced. query_lens None: one query per
        branch."""
    def write(self, buffer: int, size: int, capacity: tuple[int, int, int, int, int], stamp: int) -> int:
        """Writes the plan to `size` ints at address `buffer`, last written at `stamp` (0: never). Returns how
        many of these ints hold it."""

class DType:
    """Element type of an array that a CPU kernel reads.

    Members:

    float32

    bfloat16

    int8
    """

    float32: DType
    bfloat16: DType
    int8: DType

    def __init__(self, value: int) -> None:
        """The member with this number."""
    @property
    def name(self) -> str:
        """Name in torch."""
    @property
    def value(self) -> int:
        """Number in C++."""

class Forms:
    """Argument forms found to match a description."""

    def __init__(self, torch: ModuleType, direct: bool) -> None:
        """direct: whether arguments bypass torch's dispatcher."""
    def look(self, args: tuple[Any, ...]) -> Any:
        """The footprint learnt for arguments of this form, if their memory exists and does not overlap; else
        None."""
    def find(self, args: tuple[Any, ...]) -> Any:
        """The footprint learnt for arguments of this form; else None."""
    def wants_derivative(self, args: tuple[Any, ...]) -> bool:
        """Whether a tensor may require a derivative."""
    def learn(self, args: tuple[Any, ...], footprint: Any) -> None:
        """Records that arguments of this form fit."""
    def learn_apart(self, args: tuple[Any, ...], written: int, other: int) -> None:
        """Records that these two arguments share no memory at their current distance from each other."""

class Places:
    """Memory locations of tensors, recorded at construction."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Records where the tensors are now."""
    def hold(self) -> bool:
        """Whether every tensor is still where it was."""
    def overlap(self, tensor: Tensor) -> bool:
        """Whether a recorded location overlaps memory that this tensor may write."""

class KVView:
    """K and V of one layer in packed pages."""

    def __init__(
        self, k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None, layers: int = 0
    ) -> None:
        """k_pages, v_pages: one layer, or several behind `layers` leading dimensions; views the first layer.
        scales: of int8 pages."""

class SummaryView:
    """Page summaries of one layer."""

    def __init__(self, summaries: Tensor | None, layers: int = 0) -> None:
        """summaries: [num_pages, num_kv_heads, vectors, channels] behind `layers` leading dimensions, with 1
        vector for the mean of a page's keys, 2 for their minimum and maximum; None: no summaries."""

class TokenRows:
    """Rows of one token each: q, k, v, or hidden states."""

    def __init__(self, rows: Tensor, heads: bool = True) -> None:
        """rows: [tokens, heads, ...], or [tokens, ...] if heads is False."""

class Matrix:
    """A borrowed weight in panels of 16 outputs."""

def float_matrix(panels: tuple[int, int], dtype: DType, bias: int, gated: bool) -> Matrix:
    """panels: (address, count). bias: address of float32, 0 for none. gated: gate and up panels alternate."""

def quantised_matrix(
    panels: tuple[int, int], form: Sequence[int], blocks: int, order: int, bias: int, gated: bool
) -> Matrix:
    """As float_matrix, for panels of `blocks` quantised blocks each. order: address of int32 [inputs], the
    weight input that each panel input holds; 0 for none."""

class SharedExpert:
    """An MLP that all rows pass through, with borrowed weights."""

    def __init__(self, gate_up: Sequence[Matrix], down: Matrix, share: Matrix | None = None) -> None:
        """gate_up: as in DecoderLayer. share: its sigmoid scales the output; None: no scaling."""

class Experts:
    """A mixture of experts with borrowed weights."""

    def __init__(
        self,
        router: Matrix,
        gate_up: Sequence[Sequence[Matrix]],
        down: Sequence[Matrix],
        top_k: int,
        normalised: bool,
        clamp: tuple[float, float] | None = None,
        shared: SharedExpert | None = None,
    ) -> None:
        """gate_up, down: one entry per expert, gate_up as in DecoderLayer. normalised: the chosen experts'
        weights sum to 1. clamp: alpha and limit of a clamped SwiGLU; None: SwiGLU."""

class DecoderLayer:
    """The computation of one layer, with borrowed weights."""

    def __init__(
        self,
        norms: Sequence[tuple[int, bool]],
        head_norms: tuple[int, int, bool],
        weights: Sequence[Sequence[Matrix]],
        rotary: tuple[int, bool],
        attention: tuple[float, float, int, int],
        mlp: tuple[int, bool],
        parallel: bool,
        factor: float,
        experts: Experts | None = None,
    ) -> None:
        """norms: (address or 0 for none, whether a LayerNorm) for the input, the MLP, the attention output
        and the MLP output. head_norms: addresses for q and k, and whether one norm spans all heads. weights:
        qkv, o, and without experts gate_up and down, each a list of matrices side by side. rotary: table (-1
        for none), and whether adjacent channels pair up. attention: scale, soft cap, window and address of
        sinks (0 for none). mlp: activation code, and whether it has a gate."""

class DecoderShape:
    """Sizes that all layers of a model share."""

    def __init__(self, hidden: int, heads: tuple[int, int, int], rotary_dim: int, eps: float) -> None:
        """heads: (query heads, KV heads, head_dim)."""

class DecoderOutput:
    """Outputs requested after the last norm."""

    def __init__(self, states: int, rows: tuple[int, int], logits: tuple[int, int]) -> None:
        """Addresses, with the number of rows and the stride of the logits; address 0 for none."""

class Decoder:
    """All layers of a model and its head, with borrowed weights."""

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[DecoderLayer],
        norm: tuple[int, bool],
        head: Matrix | None,
        logits: tuple[float, float],
    ) -> None:
        """norm: as in DecoderLayer. head: None if logits are never requested. logits: factor and soft cap."""
    def run(
        self,
        x: int,
        rotary: tuple[int, int, int],
        row_dtype: DType,
        kv: KVView,
        layer_strides: tuple[int, int],
        summaries: SummaryView,
        slots: int,
        plan: tuple[int, int],
        tokens: int,
        experts: int,
        output: DecoderOutput,
        num_threads: int,
    ) -> None:
        """Runs one forward: appends K and V, attends, and writes the requested hidden states and logits.
        rotary: addresses of cos and sin, and number of tables. experts: address of each token's experts, 0 to
        use the routers."""
    def before_attention(
        self,
        layer: int,
        x: int,
        tokens: int,
        rotary: tuple[int, int, int],
        q: TokenRows,
        k: int,
        v: int,
        num_threads: int,
    ) -> None:
        """Computes a layer up to its rotated queries and keys."""
    def after_attention(self, layer: int, attended: TokenRows, x: int, tokens: int, num_threads: int) -> None:
        """Computes the rest of a layer."""
    def output(self, x: int, tokens: int, output: DecoderOutput, num_threads: int) -> None:
        """Computes the requested outputs from x, the last layer's output."""
    def logits(self, output: DecoderOutput, num_threads: int) -> None:
        """Computes logits of the first rows of the output's states."""

def decoder_layers_seconds() -> list[float]:
    """Total seconds of all calls so far: products, attention, appending, and norms with rotary embedding."""

def append_kv(
    kv: KVView,
    k: TokenRows,
    v: TokenRows,
    slots: int,
    num_tokens: int,
    summaries: SummaryView,
    num_threads: int,
) -> None:
    """Writes K and V of num_tokens tokens to their slots, int32 [num_tokens], and updates summaries."""

def copy_pages(
    kv: KVView,
    num_layers: int,
    layer_strides: tuple[int, int],
    copies: int,
    num_copies: int,
    summaries: SummaryView,
    num_threads: int,
) -> None:
    """Copies whole pages in every layer, in order. copies: int32 [num_copies, 2], (source page, target
    page)."""

def gather_kv(
    kv: KVView,
    block_table: int,
    num_table_pages: int,
    length: int,
    k: TokenRows,
    v: TokenRows,
    num_threads: int,
) -> None:
    """Copies K and V of the first `length` positions of a block table into rows."""

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
    sinks: int,
    slopes: int,
    attention_chunk: int,
    num_threads: int,
) -> None:
    """Attention for all rows of a plan; lse, mask, mass, sinks and slopes may be 0."""

def append_and_attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor | None,
    plan: Tensor,
    out: Tensor,
    scale: float,
    window: int,
    logits_soft_cap: float,
    num_threads: int,
) -> None:
    """Runs append_kv, unless k is None, then tree_attention. Checks everything before it writes."""

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
) -> None:
    """Scores each page of the plan for each query, by the page's summary."""

def count_selected(
    plan: tuple[int, int], mask: tuple[int, int], heads_rows: tuple[int, int]
) -> tuple[int, int]:
    """(query-page pairs, page loads) of a selection over a plan."""

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
) -> None:
    """Multiplies x by a packed weight. end: 0 stores the sums, 1 adds them to out, 2 applies SwiGLU."""

def quant_layout(form: Sequence[int]) -> tuple[int, int]:
    """Inputs and bytes per block of 16 outputs. form: bits, group, scales (0: float16, 1: bfloat16, 2: two
    levels, 3: float32), flags (1: minima, 2: zero points, 4: products do not round x), offset, then the 16
    table entries if there is a table."""

def quantised_linear(
    x: TokenRows,
    rows_inputs: tuple[int, int],
    form: Sequence[int],
    panels: int,
    panels_blocks: tuple[int, int],
    order: int,
    bias: int,
    out: int,
    out_stride: int,
    end: int,
    num_threads: int,
) -> None:
    """As packed_linear, for a weight of [panels, blocks] blocks of this form; order as in
    quantised_matrix."""

def dequantise_rows(
    form: Sequence[int],
    panels: int,
    blocks: int,
    order: int,
    rows: int,
    rows_inputs: tuple[int, int],
    out: int,
    num_threads: int,
) -> None:
    """Writes the outputs `rows` of a weight to out, float32, each number rounded once. blocks: per panel."""

def rms_norm(
    x: TokenRows, weight: int, shape: tuple[int, int], eps: float, out: int, num_threads: int
) -> None:
    """RMS norm of float32 rows. shape: (rows, width)."""

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
) -> None:
    """Splits qkv, then norms and rotates q and k. shape: (tokens, q heads, KV heads, head_dim)."""

def sample_tokens(
    logits: int,
    rows_vocab_stride: tuple[int, int, int],
    params: int,
    seen: tuple[int, int],
    suppressed: tuple[int, int],
    given: int,
    changed: tuple[int, int],
    values: int,
    forbidden: int,
    tokens: int,
    numbers: int,
    num_threads: int,
) -> None:
    """Draws a token for each row of logits, or scores the `given` tokens."""

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
) -> None:
    """Selects the pages that each query reads, by scores and budget, and marks them in a mask."""

def cpu_isa() -> str:
    """Name of the instruction-set level in use."""

def cpu_isa_levels() -> list[tuple[str, bool]]:
    """Levels in this build, best first, and whether this machine supports each."""

def set_cpu_isa(name: str | None) -> None:
    """Forces a level; None restores the default. Raises ValueError if it is unknown or unsupported."""

def parallel_backend() -> str:
    """Source of the operators' threads: the library of an OpenMP runtime, or std::thread."""

def park_threads() -> None:
    """From now on, every other thread that begins or ends a kernel call sleeps forever."""

def unparked_threads() -> set[int]:
    """Ids (`threading.get_ident`) of the threads that have called a kernel and are not parked."""

cuda_archs: tuple[str, ...]  # as CMake names them; () in a build without CUDA kernels

class cuda:  # a module, in a build with CUDA kernels only  # noqa: N801
    """CUDA C++ kernels; all run on `stream`, on the current device."""

    class Pages:
        """K and V of one layer in plain pages."""

        def __init__(
            self,
            k: int,
            v: int,
            k_strides: Sequence[int],
            v_strides: Sequence[int],
            shape: Sequence[int],
            element_bytes: int,
        ) -> None:
            """shape: the four page sizes. k_strides, v_strides: three each; channels are contiguous."""

    class Rows:
        """Rows of one token each."""

        def __init__(self, data: int, strides: tuple[int, int]) -> None:
            """data: an address. strides: (token, head), in elements."""

    class WorkLaunch:
        """One launch of a work list."""

        def __init__(
            self,
            work: int,
            partials: int,
            capacity: tuple[int, int, int, int, int],
            num_items: int,
            num_merges: int,
        ) -> None:
            """work, partials: addresses of the work list and of the memory for partial results."""

    @staticmethod
    def append_kv(
        pages: cuda.Pages, k: cuda.Rows, v: cuda.Rows, slots: int, num_tokens: int, stream: int
    ) -> None:
        """Writes K and V of num_tokens tokens to their slots."""
    @staticmethod
    def copy_pages(
        pages: cuda.Pages,
        num_layers: int,
        layer_strides: tuple[int, int],
        copies: int,
        num_copies: int,
        stream: int,
    ) -> None:
        """Copies whole pages in every layer."""
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
        sinks: int,
        stream: int,
    ) -> None:
        """Attention for all rows of a work list; sinks may be 0."""
