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
    """What KVTree.append asks its caller to do: first the copies, then the writes."""

    @property
    def slots(self) -> Int32Array:
        """int32 [T]: the slot, page * page_size + offset, of each new token in argument order."""
    @property
    def copies(self) -> Int32Array:
        """int32 [C, 2]: (source page, target page) of each tail that is copied on write."""

class TreeStats:
    """Counts of a KVTree at one moment."""

    @property
    def branches(self) -> int:
        """Branches that live."""
    @property
    def pins(self) -> int:
        """Pins that live."""
    @property
    def logical_tokens(self) -> int:
        """Sum of the branches' lengths."""
    @property
    def evicted_tokens(self) -> int:
        """Those of them that lie in evicted pages, which no branch sees."""
    @property
    def unique_tokens(self) -> int:
        """Distinct slots that a branch or a pin sees."""
    @property
    def resident_pages(self) -> int:
        """Pages that a branch or a pin holds."""
    @property
    def offloaded_pages(self) -> int:
        """Pages that are held but offloaded."""
    @property
    def peak_pages(self) -> int:
        """Most pages ever resident at once."""
    @property
    def fragmentation(self) -> float:
        """Share of the slots of resident and offloaded pages that nobody sees."""

class KVTree:
    """Branches over shared, reference-counted pages of a fixed pool.

    Holds ids only; K and V live where the caller keeps them. Position p of a branch lives in slot p %
    page_size of page block_table[p // page_size], which is -1 where that page was evicted. Full pages
    are shared by all branches that fork from one another; a partly filled last page is copied when a
    branch appends to it while another holds it.

    Branch ids are unique in the process, so one that was released or is of another tree raises
    ValueError. A call that raises leaves the tree as it was. Not safe for use by several threads at
    once."""

    def __init__(self, num_pages: int, page_size: int = 16, offload_pages: int = 0) -> None:
        """A tree without branches over pages 0 to num_pages - 1 of page_size tokens each, and so many places
        beside them for pages that are offloaded."""
    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
    @property
    def page_size(self) -> int:
        """Tokens of a page."""
    @property
    def free_pages(self) -> int:
        """Pages that no branch or pin holds."""
    @property
    def offload_pages(self) -> int:
        """Places for offloaded pages."""
    @property
    def offloaded_pages(self) -> int:
        """Those of them that are taken."""
    def create(self) -> int:
        """A new branch without tokens."""
    def fork(self, branch: int, n: int = 1, at: int | None = None) -> list[int]:
        """n branches that hold the first `at` tokens (default: all) of a branch or pin. Takes no page.

        Here, in pin() and in truncate(), a length that ends in an evicted or compacted page is refused."""
    def append(
        self,
        branches: Sequence[int] | IntegerArray,
        tokens: Sequence[Sequence[int] | IntegerArray],
    ) -> Append:
        """Appends tokens[i] to branches[i], for all i or none.

        The caller does the copies of the result before it writes the new tokens' K and V to the slots.
        Of the branches that share a partly filled last page, the last one to append writes in place,
        the others get copies.

        Raises OutOfPagesError, before anything changes, if the free pages do not suffice."""
    def truncate(self, branch: int, length: int) -> None:
        """Drops the tokens from position `length` on."""
    def release(self, branch: int) -> None:
        """Ends a branch. Pages that nobody else holds are free at once."""
    def evict(self, branches: Sequence[int] | IntegerArray, columns: Sequence[int] | IntegerArray) -> int:
        """Drops the pages at `columns` of the block table from each of the branches, for all or none.

        The entries become -1, also in what is forked from the branches later. Positions stay as they
        are. Returns the number of pages that became free: those that no other branch holds.

        Raises ValueError for a column that a branch does not have, its last one, one that was evicted
        from it already, and a page that a pin holds."""
    def compact(self, branch: int, columns: Sequence[int] | IntegerArray, keep: int) -> None:
        """Keeps the last `keep` of these columns of a branch and drops the pages of the others.

        The caller has moved what it keeps of the K and V of all of them into the pages that stay, in each
        layer other tokens if it likes. Positions stay as they are. No prompt matches such a page, no fork,
        pin or truncation may end in one, and what is forked from the branch later shares it.

        Raises ValueError unless the columns rise, lie before the last one and hold pages that nobody else
        does, and unless 1 <= keep < len(columns)."""
    def length(self, branch: int) -> int:
        """Tokens of a branch or pin."""
    def tokens(self, branch: int) -> Int32Array:
        """int32 [length]: the token ids of a branch or pin; -1 where their page was evicted or
        compacted."""
    def page_holders(self, branch: int) -> Int32Array:
        """int32 [pages]: how many branches and pins hold each page of one; 0 where it was evicted."""
    def pin(self, branch: int, at: int | None = None) -> int:
        """Keeps the first `at` tokens (default: all) of a branch resident, whatever becomes of the
        branch.

        A pin can be read and forked like a branch, but not appended to, truncated or released, and is
        not counted as one."""
    def unpin(self, pin: int) -> None:
        """Ends a pin. Pages that nobody else holds are free at once."""
    def offload(self, pages: Sequence[int] | IntegerArray) -> Int32Array:
        """Moves resident pages out of the pool, each for all that hold it, and frees their places.

        Returns int32 [M, 2]: (page, its place beside the pool, from num_pages on). The caller copies K and
        V there before it appends or reloads anything. An offloaded page can be shared, matched, cut and
        released like any other; nothing may be appended to a branch that ends in one, and before a forward
        its branch is reloaded.

        Raises OutOfPagesError where fewer than M of the offload_pages places are free, ValueError for a
        page that is not resident."""
    def reload(self, branches: Sequence[int] | IntegerArray) -> Int32Array:
        """Moves the offloaded pages of branches or pins back into the pool, each for all that hold it.

        Returns int32 [M, 2]: (place beside the pool, page), for the caller to copy as after offload().
        Raises OutOfPagesError, before anything changes, if the free pages do not suffice."""
    def match(self, tokens: Sequence[int] | IntegerArray) -> tuple[int, int] | None:
        """Finds the longest resident prefix of `tokens`.

        Returns (branch or pin, length), the oldest where several are equal, for fork(id, at=length);
        None where no branch begins with the first token. An evicted page ends the prefix of its
        branch."""
    def block_tables(self, branches: Sequence[int] | IntegerArray) -> tuple[Int32Array, Int32Array]:
        """(int32 [B, max_pages], int32 [B]): pages of each branch or pin, -1 where one was evicted and
        behind the last, num_pages or more where one is offloaded, and their lengths."""
    def pages_needed(self, branch: int, n: int) -> int:
        """The most pages that an append of n tokens to this branch takes."""
    def stats(self) -> TreeStats:
        """Counts over all branches and pins, made on demand."""

def plan(
    block_tables: Int32Array,
    lengths: Int32Array,
    query_lens: Int32Array | None,
    page_size: int,
    query_block: int,
) -> tuple[Int32Array, int, int, int, int]:
    """tts_kernels.plan on int32 arrays: its buffer, num_queries, max_columns, unique_pages and
    logical_pages. query_lens None: one query a branch."""

class WorkPlanner:
    """Makes work lists for a GPU; tts_kernels.DevicePlanner owns one."""

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
        """A planner for one shape of heads on a GPU with num_sms multiprocessors."""
    @property
    def stamp(self) -> int:
        """What a buffer holds that is written now."""
    @property
    def max_columns(self) -> int:
        """Most pages that a query sees."""
    def counts(self) -> list[int]:
        """Items, queries, merges, pages and partials of the plan."""
    def update(
        self,
        block_tables: Int32Array,
        lengths: Int32Array,
        query_lens: Int32Array | None,
        page_size: int,
        capacity: tuple[int, int, int, int, int] | None,
    ) -> bool:
        """Plans; True if the plan before was only advanced. query_lens None: one query a branch."""
    def write(self, buffer: int, size: int, capacity: tuple[int, int, int, int, int], stamp: int) -> int:
        """Writes the plan to the address of `size` ints, last written at `stamp` (0: never). Returns how
        many of them hold it."""

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
        """A member by its number."""
    @property
    def name(self) -> str:
        """As torch calls it."""
    @property
    def value(self) -> int:
        """As C++ numbers it."""

class Forms:
    """Forms of arguments that a description was found to fit."""

    def __init__(self, torch: ModuleType, direct: bool) -> None:
        """direct: whether arguments come without torch's dispatcher."""
    def look(self, args: tuple[Any, ...]) -> Any:
        """The footprint learnt with arguments of this form, if their memory is there and lies apart."""
    def find(self, args: tuple[Any, ...]) -> Any:
        """The footprint learnt with arguments of this form."""
    def wants_derivative(self, args: tuple[Any, ...]) -> bool:
        """Whether a tensor may ask for a derivative."""
    def learn(self, args: tuple[Any, ...], footprint: Any) -> None:
        """Arguments of this form fit."""
    def learn_apart(self, args: tuple[Any, ...], written: int, other: int) -> None:
        """These two of them share no memory where they lie, nor wherever they lie as far from each other."""

class Places:
    """Where tensors lie."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """The places where the tensors lie now."""
    def hold(self) -> bool:
        """Whether all tensors lie where they lay."""
    def overlap(self, tensor: Tensor) -> bool:
        """Whether any of them lay where this one may be written."""

class KVView:
    """K and V of one layer in packed pages."""

    def __init__(
        self, k_pages: Tensor, v_pages: Tensor, scales: Tensor | None = None, layers: int = 0
    ) -> None:
        """Addresses of k and v; strides: (page, head). element_bytes: 4, 2 (bfloat16), 1 (int8 with
        scales)."""

class SummaryView:
    """Page summaries of one layer."""

    def __init__(self, summaries: Tensor | None, layers: int = 0) -> None:
        """vectors: 1 for the mean of a page's keys, 2 for their minimum and maximum, 0 for no summaries."""

class TokenRows:
    """Rows of one token each: q, k, v, or hidden states."""

    def __init__(self, rows: Tensor, heads: bool = True) -> None:
        """strides: (token, head). element_bytes: 4 for float32, 2 for bfloat16."""

class Matrix:
    """A weight in panels of 16 outputs, borrowed."""

def float_matrix(panels: tuple[int, int], dtype: DType, bias: int, gated: bool) -> Matrix:
    """panels: their address and number. bias: address of float32, 0 for none. gated: panels of gate and up
    take turns."""

def quantised_matrix(
    panels: tuple[int, int], form: Sequence[int], blocks: int, order: int, bias: int, gated: bool
) -> Matrix:
    """The same of panels of quantised weights, of so many blocks each. order: address of int32 [inputs], the
    weight's input that each of the panels is; 0 for none."""

class SharedExpert:
    """An MLP that all rows go through, its weights borrowed."""

    def __init__(self, gate_up: Sequence[Matrix], down: Matrix, share: Matrix | None = None) -> None:
        """gate_up: as of a layer. share: of its output, by a sigmoid; None: all."""

class Experts:
    """A mixture of experts, its weights borrowed."""

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
        """gate_up, down: of each expert, gate_up as of a layer. normalised: the weights of the chosen ones
        sum to 1. clamp: alpha and limit of a clamped SwiGLU; None: SwiGLU."""

class DecoderLayer:
    """What one layer computes, its weights borrowed."""

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
        """norms: address (0 for none) and whether it is a LayerNorm, of input, MLP and what both add.
        head_norms: of q and k, and whether they are of all heads together. weights: qkv, o, and without
        experts gate_up, down, each as those that lie side by side.
        rotary: table (-1 for none), in pairs. attention: scale, soft cap, window and address of sinks (0 for
        none). mlp: code of the activation, and whether it has a gate."""

class DecoderShape:
    """What all layers of a model share."""

    def __init__(self, hidden: int, heads: tuple[int, int, int], rotary_dim: int, eps: float) -> None:
        """heads: (query heads, KV heads, head_dim)."""

class DecoderOutput:
    """What is wanted behind the last norm."""

    def __init__(self, states: int, rows: tuple[int, int], logits: tuple[int, int]) -> None:
        """Addresses, with the number of rows and the stride of the logits; 0 for none."""

class Decoder:
    """All layers of a model and its head, borrowed."""

    def __init__(
        self,
        shape: DecoderShape,
        layers: Sequence[DecoderLayer],
        norm: tuple[int, bool],
        head: Matrix | None,
        logits: tuple[float, float],
    ) -> None:
        """norm: as of a layer. head: None where logits are never wanted. logits: factor and soft cap."""
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
        """One forward: appends K and V, attends, and leaves hidden states and logits where asked. rotary:
        addresses of cos and sin, and how many tables. experts:
        of the tokens, 0 for those of the routers."""
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
        """A layer up to its rotated queries and keys."""
    def after_attention(self, layer: int, attended: TokenRows, x: int, tokens: int, num_threads: int) -> None:
        """The rest of a layer."""
    def output(self, x: int, tokens: int, output: DecoderOutput, num_threads: int) -> None:
        """What follows the layers."""
    def logits(self, output: DecoderOutput, num_threads: int) -> None:
        """Logits of the first rows of the output's states."""

def decoder_layers_seconds() -> list[float]:
    """Seconds of all calls so far in products, attention, appending, and norms with rotary positions."""

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
    """Copies whole pages in every layer, in order; copies: int32 [num_copies, 2] of source and target
    page."""

def gather_kv(
    kv: KVView,
    block_table: int,
    num_table_pages: int,
    length: int,
    k: TokenRows,
    v: TokenRows,
    num_threads: int,
) -> None:
    """Copies K and V of the first `length` positions of one block table into rows."""

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
    """Attention of all rows of a plan; lse, mask, mass, sinks and slopes may be 0."""

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
    """append_kv, unless k is None, then tree_attention. All is checked before anything is written."""

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
    """Scores of each page of the plan by its summary for each query."""

def count_selected(
    plan: tuple[int, int], mask: tuple[int, int], heads_rows: tuple[int, int]
) -> tuple[int, int]:
    """(pairs of query and page, loads of pages) of a selection over a plan."""

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
    """x times a packed weight. end: 0 writes the sums, 1 adds them to out, 2 applies SwiGLU."""

def quant_layout(form: Sequence[int]) -> tuple[int, int]:
    """Inputs and bytes of a block of 16 outputs. form: bits, group, scales (0: float16, 1: bfloat16, 2: two
    levels, 3: float32), 1 where there are minima and 2 where there are zero points, plus 4 where products do
    not round x, offset, and the 16 entries of a table where there is one."""

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
    """As packed_linear, a weight of [panels, blocks] blocks of this form; order as of quantised_matrix."""

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
    """out: float32, the outputs `rows` of a weight of `blocks` blocks a panel, each number rounded once."""

def rms_norm(
    x: TokenRows, weight: int, shape: tuple[int, int], eps: float, out: int, num_threads: int
) -> None:
    """RMS norm of float32 rows, shape: (rows, width)."""

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
    """Norms and rotates q and k, and splits q, k and v; shape: (tokens, q heads, KV heads, head_dim)."""

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
    """Draws a token for each row of logits, or scores the `given` ones."""

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
    """Marks the pages that each query reads in a mask, by scores and budget."""

def cpu_isa() -> str:
    """Name of the instruction-set level that is used."""

def cpu_isa_levels() -> list[tuple[str, bool]]:
    """Levels of this build, best first, and whether the machine supports each."""

def set_cpu_isa(name: str | None) -> None:
    """Forces a level; None goes back to the best one. ValueError where it is unknown or unsupported."""

def parallel_backend() -> str:
    """Whose threads run the operators: an OpenMP runtime's library, or std::thread."""

def park_threads() -> None:
    """From now on every other thread that begins or ends a kernel call sleeps for good."""

def unparked_threads() -> set[int]:
    """Threads that have called a kernel and are not parked, by `threading.get_ident`."""

cuda_archs: tuple[str, ...]  # as CMake names them; () in a build without CUDA kernels

class cuda:  # a module, in a build with CUDA kernels only  # noqa: N801
    """Kernels in CUDA C++; all run on `stream`, in the current device."""

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
            """shape: the four sizes of the pages; three strides each of k and v, channels being
            contiguous."""

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
            """Addresses of the work list and of the memory for partial results."""

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
        """Attention of all rows of a work list; sinks may be 0."""
