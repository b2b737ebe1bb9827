"""Both backends for vLLM (packed pages on a CPU; plain pages, in Triton's interpreter) on metadata of vLLM's
own classes: attention equals a plain computation; and what vLLM's configuration meets at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from needed import needs
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from vllm_process import VLLMProcess

needs("vllm")

import vllm
from tiny_models import tiny_model
from transformers import BloomConfig, DeepseekV2Config, Llama4TextConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, FullAttentionSpec, SlidingWindowSpec

from tts_kernels.integrations.vllm.packed import PackedBackend
from tts_kernels.integrations.vllm.plain import PlainBackend
from tts_kernels.integrations.vllm.plugin import register
from tts_kernels.integrations.vllm.support import VLLMIntegrationError

HEADS, KV_HEADS, DIM, BLOCK, BLOCKS = 4, 2, 32, 16, 14
SCALE = 0.3
SIZES: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": KV_HEADS, "head_size": DIM}

# Steps of requests: block table, tokens known before, new tokens. The second has the first one's prompt in
# the prefix cache, the third begins while the others go on. Unused entries of a table hold 0, as vLLM's do.
STEPS = [
    [([3, 7, 5, 0], 0, 40)],
    [([3, 7, 5, 0], 40, 1), ([3, 7, 9, 0], 32, 12), ([11, 0, 0, 0], 0, 5)],
    [([11, 0, 0, 0], 5, 1), ([3, 7, 9, 0], 44, 1), ([3, 7, 5, 0], 41, 1)],
    [([3, 7, 9, 2], 45, 8), ([11, 12, 0, 0], 6, 20)],
]


def metadata(requests: list[tuple[list[int], int, int]], padding: int) -> CommonAttentionMetadata:
    """padding: rows behind the tokens, as vLLM adds them."""
    lens = [new for _, _, new in requests]
    starts = torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
    positions = [range(before, before + new) for _, before, new in requests]
    slots = [
        table[p // BLOCK] * BLOCK + p % BLOCK
        for (table, _, _), own in zip(requests, positions, strict=True)
        for p in own
    ]
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([before + new for _, before, new in requests], dtype=torch.int32),
        num_reqs=len(requests),
        num_actual_tokens=sum(lens) + padding,
        max_query_len=max(lens),
        max_seq_len=max(before + new for _, before, new in requests),
        block_table_tensor=torch.tensor([table for table, _, _ in requests], dtype=torch.int32),
        slot_mapping=torch.tensor(slots + [-1] * padding),
    )


def make_builder(backend: Any, spec: Any, *layers: Any) -> Any:
    """Of a group of these layers, or of one."""
    named = {f"layer{i}": layer for i, layer in enumerate(layers or [SimpleNamespace(num_heads=HEADS)])}
    config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=named))
    return backend.get_builder_cls()(spec, list(named), config, torch.device("cpu"))


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, cap: float | None) -> Tensor:
    """The last rows of causal attention over a whole sequence, in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * SCALE
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    position = torch.arange(k.shape[1])
    distance = position[-q.shape[1] :, None] - position
    hidden = (distance < 0) | (distance >= (window or 1000))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize(
    ("window", "cap", "padding"), [(None, None, 0), (9, None, 3), (None, 2.0, 0), (20, 1.5, 2)]
)
@pytest.mark.parametrize("backend", [PackedBackend, PlainBackend])
def test_steps_equal_a_plain_computation(
    backend: Any, window: int | None, cap: float | None, padding: int
) -> None:
    torch.manual_seed(0)
    memory = torch.full((BLOCKS, KV_HEADS, BLOCK, 2 * DIM), torch.nan)
    if window is None:
        spec = FullAttentionSpec(dtype=torch.float32, **SIZES)
    else:
        spec = SlidingWindowSpec(dtype=torch.float32, sliding_window=window, **SIZES)
    layer = SimpleNamespace(num_heads=HEADS, kv_cache=memory)
    builder = make_builder(backend, spec, layer)
    sizes = (HEADS, DIM, SCALE, KV_HEADS)
    options: dict[str, Any] = {"sliding_window": window, "logits_soft_cap": cap}
    first = backend.get_impl_cls()(*sizes, **options)
    sharing = backend.get_impl_cls()(*sizes, kv_sharing_target_layer_name="layer", **options)
    known: dict[int, tuple[Tensor, Tensor]] = {}  # last own block -> keys, values of all tokens
    for requests in STEPS:
        rows = sum(new for _, _, new in requests) + padding
        q, k, v = (torch.randn(rows, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
        step = builder.build(0, metadata(requests, padding))
        # A layer that shares keys and values gets others, and must leave them alone.
        outputs = [
            first.forward(layer, q, k, v, memory, step, torch.empty(rows, HEADS, DIM)),
            sharing.forward(layer, q, -k, -v, memory, step, torch.empty(rows, HEADS, DIM)),
        ]
        at = 0
        for table, before, new in requests:
            name = table[0] if table[0] == 11 else table[2]
            if before and name not in known:  # found in the prefix cache
                known[name] = tuple(x[:before] for x in known[5])  # type: ignore[assignment]
            keys, values = known.get(name, (k[:0], v[:0]))
            end = at + new
            known[name] = torch.cat([keys, k[at:end]]), torch.cat([values, v[at:end]])
            expected = attend(q[at:end], *known[name], window, cap)
            for output in outputs:
                torch.testing.assert_close(output[at:end].double(), expected, atol=1e-5, rtol=1e-5)
            at = end
    assert builder.steps == len(STEPS)


@pytest.mark.parametrize("backend", [PackedBackend, PlainBackend])
def test_blocks_behind_a_window_are_read_once(backend: Any) -> None:
    """Three sequences went on from 80 tokens that they share. vLLM takes blocks back as they leave a window
    of 20 tokens: other ones of each sequence, as these are not of one length, and not yet all of them."""
    lengths = [85, 95, 81]
    tables = [[0, 0, 0, 4, 5, 6], [0, 0, 0, 0, 5, 7], [0, 2, 3, 4, 5, 9]]
    torch.manual_seed(0)
    memory = torch.randn(BLOCKS, KV_HEADS, BLOCK, 2 * DIM)
    memory[0] = torch.nan
    spec = SlidingWindowSpec(dtype=torch.float32, sliding_window=20, **SIZES)
    layer = SimpleNamespace(num_heads=HEADS, kv_cache=memory)
    builder = make_builder(backend, spec, layer)
    impl = backend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS, sliding_window=20)
    requests = [(table, length - 1, 1) for table, length in zip(tables, lengths, strict=True)]
    rows = [torch.randn(3, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]

    def attended(chosen: slice) -> tuple[Any, Tensor]:
        given = metadata(requests[chosen], 0)
        before = given.block_table_tensor.clone()
        step, own = builder.build(0, given), [row[chosen] for row in rows]
        output = impl.forward(layer, *own, memory, step, torch.empty_like(own[0]))
        assert torch.equal(given.block_table_tensor, before)
        return step, output

    alone = torch.cat([attended(slice(i, i + 1))[1] for i in range(3)])
    step, together = attended(slice(3))
    torch.testing.assert_close(together, alone)
    if backend is PackedBackend:  # the first five are one path
        assert step.plan.unique_pages == 5 + 3


def test_a_layer_computes_into_the_output_of_vllm() -> None:
    """On a CPU, with views of one projection: no copy, no tensor of its own, nothing through a dispatcher."""
    memory = torch.zeros(BLOCKS, KV_HEADS, BLOCK, 2 * DIM)
    builder = make_builder(PackedBackend, FullAttentionSpec(dtype=torch.float32, **SIZES))
    impl = PackedBackend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS)
    step = builder.build(0, metadata(STEPS[0], 0))
    q, k, v = torch.randn(40, HEADS + 2 * KV_HEADS, DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    first, second = torch.empty(40, HEADS, DIM), torch.empty(40, HEADS, DIM)
    impl.forward(None, q, k, v, memory, step, first)
    called: list[Any] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(f)
            return f(*args, **(kwargs or {}))

    with Calls():
        impl.forward(None, q, k, v, memory, step, second)
    assert called == []
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", [PackedBackend, PlainBackend])
def test_a_run_without_a_batch_gives_zeros(backend: Any) -> None:
    impl = backend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS)
    rows = torch.randn(3, HEADS, DIM)
    output = impl.forward(
        None, rows, rows[:, :2], rows[:, :2], torch.tensor([]), None, torch.ones(3, HEADS, DIM)
    )
    assert not output.any()


@pytest.mark.parametrize("backend", [PackedBackend, PlainBackend])
def test_other_attention_is_refused(backend: Any) -> None:
    local = ChunkedLocalAttentionSpec(dtype=torch.float32, attention_chunk_size=32, **SIZES)
    with pytest.raises(VLLMIntegrationError, match="layer: got a ChunkedLocalAttentionSpec, expected"):
        backend.get_builder_cls()(local, ["layer"], None, torch.device("cpu"))
    spec = FullAttentionSpec(dtype=torch.float32, head_size_v=16, **SIZES)
    with pytest.raises(VLLMIntegrationError, match=r"layer: got values of 16 channels.*TTS_KERNELS_VLLM=0"):
        backend.get_builder_cls()(spec, ["layer"], None, torch.device("cpu"))
    builder = make_builder(backend, FullAttentionSpec(dtype=torch.float32, **SIZES))
    step = metadata(STEPS[0], 0)
    with pytest.raises(VLLMIntegrationError, match="causal: got attention to later tokens"):
        builder.build(0, step.replace(causal=False))
    with pytest.raises(VLLMIntegrationError, match="sinks: got one"):
        backend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS, sinks=torch.zeros(HEADS))
    impl, rows = backend.get_impl_cls()(HEADS, DIM, SCALE, KV_HEADS), torch.zeros(1, HEADS, DIM)
    for name in ("output_scale", "output_block_scale"):
        with pytest.raises(VLLMIntegrationError, match=f"{name}: got one, expected None"):
            impl.forward(None, rows, rows, rows, rows, None, rows, **{name: torch.ones(1)})


def test_layers_of_one_plan_have_one_number_of_heads() -> None:
    """A plan for a GPU depends on it, one for a CPU does not."""
    spec = FullAttentionSpec(dtype=torch.float32, **SIZES)
    layers = [SimpleNamespace(num_heads=heads) for heads in (4, 8)]
    make_builder(PackedBackend, spec, *layers)
    with pytest.raises(VLLMIntegrationError, match="layer0: got layers of 4 and 8 query heads"):
        make_builder(PlainBackend, spec, *layers)


def test_each_group_of_each_engine_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    spec = FullAttentionSpec(dtype=torch.float32, **SIZES)
    for backend, place in ((PackedBackend, "at CPU level "), (PlainBackend, "on cpu")):
        caplog.clear()
        for _ in range(2):
            make_builder(backend, spec)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 2
        assert all(f"attention of this engine, in float32 {place}" in warning for warning in warnings)


def test_the_device_is_asked_once_a_step() -> None:
    """And for the used columns of the block tables alone."""
    spec = FullAttentionSpec(dtype=torch.float32, **SIZES)
    layer = SimpleNamespace(num_heads=HEADS, kv_cache=torch.zeros(BLOCKS, KV_HEADS, BLOCK, 2 * DIM))
    builder = make_builder(PlainBackend, spec, layer)
    given = metadata(STEPS[1], 0)
    tables = torch.cat([given.block_table_tensor, torch.zeros(3, 1000, dtype=torch.int32)], dim=1)
    copied: list[tuple[int, ...]] = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if f is Tensor.cpu:
                copied.append(tuple(args[0].shape))
            return f(*args, **(kwargs or {}))

    with Copies():
        builder.build(0, given.replace(block_table_tensor=tables))
    assert copied == [(3, 1 + 3)]  # 44 tokens are the most


def test_the_plugin_registers_once_and_refuses_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    hook = type(current_platform).check_and_update_config
    register()
    assert type(current_platform).check_and_update_config == hook
    assert AttentionBackendEnum.CPU_ATTN.get_class() is PackedBackend
    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    with pytest.raises(VLLMIntegrationError, match=r"vllm: got version 0\.33\.0, expected 0\.32"):
        register()
    # If it is only one backend to choose from, the others continue.
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    register()
    with pytest.raises(ValueError, match="CUSTOM must be registered before use"):
        AttentionBackendEnum.CUSTOM.get_class()
    monkeypatch.undo()


def test_blocks_are_pages_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    settings: dict[str, Any] = {"model": str(tmp_path), "skip_tokenizer_init": True, "dtype": "float32"}
    assert EngineArgs(**settings).create_engine_config().cache_config.block_size == 16
    assert EngineArgs(**settings, block_size=64).create_engine_config().cache_config.block_size == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype: got torch.float16, expected torch.float32 or torch.bfloat16"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: got fp8, expected auto or float32"),
        ({"block_size": 8}, "block_size: got 8, expected a multiple of 16"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
            "speculative decoding: not served by tts_kernels; set TTS_KERNELS_VLLM=0",
        ),
    ],
)
def test_vllm_does_not_start_with_what_is_not_served(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path)
    served: dict[str, Any] = {"model": str(tmp_path), "skip_tokenizer_init": True, "dtype": "float32"}
    with pytest.raises(VLLMIntegrationError, match=f"^{message}"):
        EngineArgs(**served | settings).create_engine_config()


def test_mla_is_refused(tmp_path: Path) -> None:
    """vLLM has another backend for it, which the switch leaves alone."""
    config = DeepseekV2Config(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, architectures=["DeepseekV2ForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(VLLMIntegrationError, match=r"^MLA: not served by tts_kernels"):
        EngineArgs(model=str(tmp_path), skip_tokenizer_init=True, dtype="float32").create_engine_config()


def test_local_attention_in_chunks_is_refused_at_the_start(tmp_path: Path) -> None:
    config = Llama4TextConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        attention_chunk_size=32,
        architectures=["Llama4ForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(VLLMIntegrationError, match=r"^local attention in chunks: not served by tts_kernels"):
        EngineArgs(model=str(tmp_path), skip_tokenizer_init=True, dtype="float32").create_engine_config()


# As on a GPU, where the backend is one to choose: what vLLM answers without it and with it.
ELSEWHERE = """
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from tts_kernels.integrations.vllm.plugin import register

current_platform.is_cpu = lambda: False
register()
del current_platform.is_cpu
settings = {"model": sys.argv[1], "skip_tokenizer_init": True, "dtype": "float32"}
settings["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
custom = AttentionBackendEnum.CUSTOM
for chosen in {}, {"backend": custom}, {"backend_per_kind": {"sliding_window": custom}}:
    try:
        EngineArgs(**settings, attention_config=chosen).create_engine_config()
        print("served", file=sys.stderr)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
"""


def test_the_backend_of_a_gpu_checks_a_configuration_that_chooses_it(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path],
        env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    refusal = "VLLMIntegrationError: speculative decoding: not served by tts_kernels; set TTS_KERNELS_VLLM=0"
    answers = [line for line in done.stderr.splitlines() if line.startswith(("served", "VLLM"))]
    assert answers[0] == "served", done.stderr
    assert [answer[: len(refusal)] for answer in answers[1:]] == [refusal, refusal]


def test_a_layer_that_is_not_served_ends_the_start(tmp_path: Path) -> None:
    """BLOOM's ALiBi is known when the model is made."""
    config = BloomConfig(
        hidden_size=64, n_layer=1, n_head=2, vocab_size=64, architectures=["BloomForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    process = VLLMProcess(ours=True)
    engine: dict[str, Any] = {"load_format": "dummy", "dtype": "float32", "max_model_len": 64}
    engine |= {"kv_cache_memory_bytes": 2**24}
    with pytest.raises(RuntimeError, match="VLLMIntegrationError: alibi_slopes: got one"):
        process.generate(tmp_path, engine, [])
    process.close()
