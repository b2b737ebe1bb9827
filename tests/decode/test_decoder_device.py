"""TreeDecoder's steps for a GPU give the text of the CPU, from plain pages, work lists and replayed steps.

Without a GPU the kernels run in Triton's interpreter, and a captured step is a function that is called again
on the same inputs' memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import Branch, SamplingParams, SparseConfig, StaleKVError, Step, TreeDecoder, gather
from tts_decode.decoding import assembly
from tts_decode.model import device_steps

from tts_kernels import CapacityError

PROMPT = list(b"A prompt that is longer than a page of tokens.")
DEVICES = ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the model goes; on the CPU the decoder takes the way of a GPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        return "cuda"
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in where there is no GPU")
    monkeypatch.setattr(assembly, "_runs_on_host", lambda device: False)
    return "cpu"


def make(family: str, device: str, **options: Any) -> TreeDecoder:
    """Unchecked, as the interpreter is slow; test_self_check_faults.py has the check."""
    model = tiny_model(family).to(device)
    made = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 21, check=False, **options)
    made.eos_token_ids = frozenset()  # a random model ends its texts at random
    return made


def host(family: str, monkeypatch: pytest.MonkeyPatch) -> TreeDecoder:
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "_runs_on_host", lambda device: True)
        return make(family, "cpu")


async def search(decoder: TreeDecoder, sampling: SamplingParams) -> list[tuple[list[int], list[float]]]:
    """Grows, forks in the past, prunes, rolls back, forces text; tokens and log-probabilities at the end."""
    root = await decoder.root(PROMPT, sampling)
    first, second, third = root.fork(3)
    await gather(branch.step(max_step_tokens=3) for branch in (first, second, third))
    third.release()
    children = first.fork(2, at=len(PROMPT) - 3)
    await gather(branch.step(max_step_tokens=3) for branch in (second, *children))
    second.truncate(len(PROMPT) + 2)
    forced = await second.extend(b"forced text".decode())
    await gather(branch.step(max_step_tokens=2) for branch in (root, second, *children))
    result = [(branch.tokens, branch.logprobs) for branch in (root, first, second, *children)]
    result.append(([], forced.tolist()))
    result.append(([], (await children[0].next_logprobs()).tolist()))
    for branch in (root, first, second, *children):
        branch.release()
    return result


@pytest.mark.parametrize(
    ("family", "sampling", "graphs"),
    [
        ("llama", SamplingParams(temperature=0), True),
        ("gemma2", SamplingParams(top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.2, seed=3), True),
        ("llama", SamplingParams(top_p=0.7, seed=4), False),
    ],
)
def test_same_text_as_on_the_cpu(
    device: str, family: str, sampling: SamplingParams, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = host(family, monkeypatch)
    expected = reference.run(search(reference, sampling))
    under_test = make(family, device, cuda_graphs=graphs)
    got = under_test.run(search(under_test, sampling))
    for (tokens, logprobs), (expected_tokens, expected_logprobs) in zip(got, expected, strict=True):
        assert tokens == expected_tokens
        # float32; another order of the sums in attention
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected_logprobs), atol=3e-4, rtol=0)
    assert under_test.stats().resident_bytes == 0


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs there were before each that was captured."""
    captured = []
    capture = device_steps.DecodeGraphs._capture

    def counting(self: device_steps.DecodeGraphs, forward: Any) -> Any:
        captured.append(len(self._buckets))
        return capture(self, forward)

    monkeypatch.setattr(device_steps.DecodeGraphs, "_capture", counting)
    return captured


def test_decode_steps_are_captured_once_for_each_size(device: str, captured: list[int]) -> None:
    under_test = make("llama", device)

    async def grow() -> None:
        root = await under_test.root(PROMPT, SamplingParams(temperature=0))
        branches = root.fork(5)
        await gather(branch.step(max_step_tokens=3) for branch in branches)
        await gather(branch.step(max_step_tokens=2) for branch in branches[:3])
        await branches[0].step(max_step_tokens=2)
        await gather(branch.step(max_step_tokens=2) for branch in branches)

    under_test.run(grow())
    assert len(captured) == 3, "steps of 5, 3 and 1 branches, padded to 8, 4 and 1"


@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_changed_weights_reach_captured_steps(device: str, change: str, captured: list[int]) -> None:
    """Graphs read weights where these lay: in place they are replayed, else they are made anew."""
    under_test = make("llama", device)
    model = under_test.model

    async def train() -> None:
        root = await under_test.root(PROMPT, SamplingParams(temperature=0))
        await root.step(max_step_tokens=2)
        up = model.model.layers[1].mlp.up_proj
        with torch.no_grad():
            if change == "in place":
                up.weight.mul_(1.5)
            else:
                up.weight.data = up.weight * 1.5
        with pytest.raises(StaleKVError):
            await root.step()
        await root.recompute()
        step = await root.step(max_step_tokens=3)
        with torch.no_grad():
            logprobs = model(torch.tensor([root.tokens], device=device)).logits[0].log_softmax(-1).cpu()
        wanted = logprobs[-4:-1].max(-1)
        assert step.tokens == tuple(wanted.indices.tolist())
        # float32; another order of the sums in attention
        torch.testing.assert_close(torch.tensor(step.logprobs), wanted.values, atol=3e-4, rtol=0)

    under_test.run(train())
    assert len(captured) == (1 if change == "in place" else 2)


def test_an_outgrown_capacity_runs_without_a_graph(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make("llama", device, cuda_graphs=False)
    under_test = make("llama", device)

    def refuse(*args: Any) -> None:
        raise CapacityError("capacity: too small")

    async def texts(decoder: TreeDecoder) -> list[list[int]]:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        branches = root.fork(2)
        await gather(branch.step(max_step_tokens=2) for branch in branches)
        for bucket in decoder.runtime.steps._graphs._buckets.values() if decoder is under_test else ():
            monkeypatch.setattr(bucket.planner, "update", refuse)
        await gather(branch.step(max_step_tokens=2) for branch in branches)
        return [branch.tokens for branch in branches]

    assert under_test.run(texts(under_test)) == expected.run(texts(expected))


def test_hidden_states_come_to_the_host(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, under_test = host("llama", monkeypatch), make("llama", device)

    async def step(decoder: TreeDecoder) -> Step:
        decoder.keep_hidden += 1
        root: Branch = await decoder.root(PROMPT, SamplingParams(temperature=0))
        return await root.step(max_step_tokens=3)

    hidden, expected = under_test.run(step(under_test)).hidden, reference.run(step(reference)).hidden
    assert hidden is not None
    assert hidden.device.type == "cpu"
    torch.testing.assert_close(hidden, expected, atol=2e-4, rtol=1e-4)


def test_bad_logits_name_their_row(device: str) -> None:
    under_test = make("llama", device)

    async def poisoned() -> None:
        with torch.no_grad():
            under_test.model.lm_head.weight.fill_(torch.nan)
        root = await under_test.root(PROMPT)
        await root.fork(2)[1].step(max_step_tokens=4)

    with pytest.raises(ValueError, match="logits hold NaN or inf"):
        under_test.run(poisoned())


def test_a_step_that_cannot_be_captured_runs_without_graphs(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, under_test = make("llama", device, cuda_graphs=False), make("llama", device)

    async def texts(decoder: TreeDecoder) -> list[list[int]]:
        root = await decoder.root(PROMPT, SamplingParams(temperature=0))
        branches = root.fork(2)
        await gather(branch.step(max_step_tokens=3) for branch in branches)
        return [branch.tokens for branch in branches]

    texts_without = expected.run(texts(expected))
    if device == "cuda":  # a layer that waits for the device
        under_test.model.model.layers[0].register_forward_hook(lambda *_: torch.ones(1, device="cuda").item())
    else:

        def refuse(*args: Any) -> None:
            raise device_steps.NotCapturableError("it waits")

        monkeypatch.setattr(device_steps.DecodeGraphs, "_capture", refuse)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        assert under_test.run(texts(under_test)) == texts_without
    if device == "cuda":
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_device_that_is_not_there() -> None:
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"device: got '{missing}', but torch finds"):
        TreeDecoder(tiny_model(), byte_tokenizer(), device=missing)


def test_a_refused_device_leaves_the_weights() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="device: got 'meta', expected cpu or cuda"):
        TreeDecoder(model, byte_tokenizer(), device="meta")
    assert model.device.type == "cpu"
    with pytest.raises(TypeError, match="model: got str, expected a causal language model of transformers"):
        TreeDecoder("model", byte_tokenizer(), device="cpu")


def test_sparse_steps_give_the_text_of_the_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward with one sparse layer: the interpreter is slow."""
    sparse = SparseConfig(budget=2, dense_layers=2, recent=1, keep_tail=False)
    sampling = SamplingParams(temperature=0.7, max_step_tokens=2)

    async def sample(decoder: TreeDecoder) -> list[list[int]]:
        root = await decoder.root(PROMPT * 2, sampling)
        branches = root.fork(2)
        await gather(branch.step() for branch in branches)
        return [branch.tokens for branch in branches]

    with monkeypatch.context() as patch:
        patch.setattr(assembly, "_runs_on_host", lambda device: True)
        on_host = make("llama", "cpu", sparse=sparse)
    on_device = make("llama", device, sparse=sparse)
    assert on_device.run(sample(on_device)) == on_host.run(sample(on_host))
    assert on_device.stats().cost.selection == on_host.stats().cost.selection
    assert on_device.stats().cost.attention.flops >= on_host.stats().cost.attention.flops


def test_reads_embeddings_and_suppressed_tokens_as_on_the_cpu(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))

    async def search(decoder: TreeDecoder) -> list[torch.Tensor]:
        root = await decoder.root(PROMPT[:9])
        states = await root.read([5, 6, 7], [0, 2])
        soft = await root.extend_embeds(embeds)
        first = int((await root.next_logprobs()).argmax())
        await root.step(temperature=0, max_step_tokens=2, suppress_token_ids=(first,))
        assert root.tokens[-2] != first
        return [states, soft, torch.tensor(root.tokens), torch.tensor(root.logprobs[-2:])]

    reference = host("llama", monkeypatch)
    expected = reference.run(search(reference))
    under_test = make("llama", device)
    for got, wanted in zip(under_test.run(search(under_test)), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-4, rtol=0)
