"""Weights that change between calls: what the decoder gives is always the model's own plain forward."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import close, make, plain_logprobs
from search_options import small_options
from tiny_models import byte_tokenizer, tiny_model
from torch import nn
from transformers import PreTrainedModel
from tts_decode import SamplingParams, StaleKVError, TreeBranch, TreeDecoder, UnsupportedModelError, gather
from tts_decode.search import STRATEGIES

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(range(40, 90))
PATHS = pytest.mark.parametrize("pack_weights", [True, False], ids=["packed", "general"])


def expected(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """The next token's log-probabilities."""
    return plain_logprobs(model, tokens)[-1]


def layer(model: PreTrainedModel) -> Any:
    return model.model.layers[1]


# -- ways in which weights change


def in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        layer(model).mlp.up_proj.weight.mul_(1.5)


def one_row(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[PROMPT[0]] += 1.0


def in_inference_mode(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        layer(model).input_layernorm.weight.mul_(1.5)


def buffer(model: PreTrainedModel) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[PreTrainedModel], None]:
    def step(model: PreTrainedModel) -> None:
        trained = list(layer(model).parameters())
        for weight in trained:
            weight.grad = torch.ones_like(weight)
        kind(trained, lr=0.05, **options).step()
        for weight in trained:
            weight.grad = None

    return step


def load_state_dict(**options: bool) -> Callable[[PreTrainedModel], None]:
    def load(model: PreTrainedModel) -> None:
        model.load_state_dict(tiny_model(seed=1).state_dict(), **options)

    return load


def data_replaced(model: PreTrainedModel) -> None:
    layer(model).mlp.up_proj.weight.data = layer(model).mlp.up_proj.weight * 1.5


def data_replaced_twice(model: PreTrainedModel) -> None:
    """The second time by memory at the address of the first."""
    weight = model.lm_head.weight
    for _ in range(2):
        weight.data = weight.data * 1.3


def parameter_replaced(model: PreTrainedModel) -> None:
    layer(model).mlp.down_proj.weight = nn.Parameter(layer(model).mlp.down_proj.weight * 1.5)


def module_replaced(model: PreTrainedModel) -> None:
    layer(model).mlp.up_proj = nn.Linear(64, 96, bias=False)


def layer_replaced(model: PreTrainedModel) -> None:
    model.model.layers[2] = tiny_model(seed=2).model.layers[2]


def base_replaced(model: PreTrainedModel) -> None:
    model.model = tiny_model(seed=2).model


def activation_replaced(model: PreTrainedModel) -> None:
    layer(model).mlp.act_fn = nn.GELU()


class Adapter(nn.Module):
    """As LoRA's: a linear layer and a product of two thin ones beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x)))

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.base.weight += self.up.weight @ self.down.weight
        return self.base


def adapter_added(model: PreTrainedModel) -> None:
    layer(model).mlp.gate_proj = Adapter(layer(model).mlp.gate_proj)


def adapter_merged(model: PreTrainedModel) -> None:
    adapter_added(model)
    layer(model).mlp.gate_proj = layer(model).mlp.gate_proj.merged()


def forward_replaced(model: PreTrainedModel) -> None:
    mlp = layer(model).mlp
    mlp.forward = lambda x: 0.5 * type(mlp).forward(mlp, x)


def hook(model: PreTrainedModel) -> None:
    layer(model).mlp.register_forward_hook(lambda _module, _args, output: 0.5 * output)


def pre_hook_of_the_head(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_pre_hook(lambda _module, args: (0.5 * args[0],))


def hook_taken_away(model: PreTrainedModel) -> None:
    """By another one."""
    mlp = layer(model).mlp
    mlp.register_forward_hook(lambda _module, _args, output: 0.5 * output).remove()
    mlp.register_forward_hook(lambda _module, _args, output: 0.25 * output)


def class_replaced(model: PreTrainedModel) -> None:
    class Halved(type(layer(model).mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().forward(x)

    layer(model).mlp.__class__ = Halved


SEEN = {
    change.__name__: change
    for change in (
        in_place,
        one_row,
        in_inference_mode,
        buffer,
        data_replaced,
        data_replaced_twice,
        parameter_replaced,
        module_replaced,
        layer_replaced,
        base_replaced,
        activation_replaced,
        adapter_added,
        adapter_merged,
        forward_replaced,
        hook,
        pre_hook_of_the_head,
        hook_taken_away,
        class_replaced,
    )
} | {
    "SGD": optimizer(torch.optim.SGD),
    "AdamW foreach": optimizer(torch.optim.AdamW, foreach=True),
    "AdamW fused": optimizer(torch.optim.AdamW, fused=True),
    "load_state_dict": load_state_dict(),
    "load_state_dict assign": load_state_dict(assign=True),
}


def data_written(model: PreTrainedModel) -> None:
    layer(model).mlp.up_proj.weight.data.mul_(1.5)


def memory_written(model: PreTrainedModel) -> None:
    array = model.lm_head.weight.detach().numpy()
    array *= 1.5


def attribute(model: PreTrainedModel) -> None:
    layer(model).self_attn.scaling = 0.01


TOLD = {change.__name__: change for change in (data_written, memory_written, attribute)}


@PATHS
@pytest.mark.parametrize("name", [*SEEN, *TOLD])
def test_nothing_of_the_old_weights_is_used(name: str, pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=4))
        (child,) = root.fork()
        await child.step()
        pin = decoder.pin(child)
        before = expected(model, child.tokens)
        if name in SEEN:
            SEEN[name](model)
        else:
            TOLD[name](model)
            decoder.weights_changed()
        assert (expected(model, child.tokens) - before).abs().max() > 0.1  # the change is one
        fresh = await decoder.root(child.tokens)
        close(await fresh.next_logprobs(), expected(model, child.tokens))
        assert not pin.resident
        for branch in (root, child, *child.fork(), *child.fork(at=len(PROMPT))):
            with pytest.raises(StaleKVError, match=r"await branch.recompute\(\)"):
                await branch.step()
            await branch.recompute()
            close(await branch.next_logprobs(), expected(model, branch.tokens))

    decoder.run(train())


@PATHS
@pytest.mark.parametrize(
    "call",
    [
        lambda branch: branch.step(),
        lambda branch: branch.extend([1, 2]),
        lambda branch: branch.read([1, 2], [1]),
        lambda branch: branch.extend_embeds(torch.zeros(2, 64)),
        lambda branch: branch.next_logprobs(),
        lambda branch: branch.logprobs_of([1, 2]),
        lambda branch: branch.replay(branch.steps[0]),
    ],
)
def test_every_call_says_so(call: Callable[[TreeBranch], Any], pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=3))
        (child,) = root.fork()
        await child.step()
        tokens = list(child.tokens)
        in_place(model)
        for _ in range(2):  # as it is noticed, and later
            with pytest.raises(StaleKVError):
                await call(child)
        with pytest.raises(StaleKVError):
            decoder.pin(root)
        assert child.tokens == tokens
        assert len(child.logprobs) == 3
        assert child.stale
        assert decoder.stats().resident_bytes == 0
        (cut,) = child.fork(at=len(PROMPT) + 1)
        root.truncate(5)
        assert cut.stale
        assert root.stale
        restored = await decoder.restore(child.snapshot())
        close(await restored.next_logprobs(), expected(model, tokens))

    decoder.run(train())


def test_branches_that_are_recomputed_share_their_prefix_again() -> None:
    model = tiny_model()
    decoder = make(model)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=4))
        branches = [root, *root.fork(5)]
        await gather(branch.step() for branch in branches[1:])
        await branches[1].recompute()  # of this epoch: does nothing
        before = decoder.stats()
        in_place(model)
        told = [(b.tokens[:], b.logprobs[:], b.steps[:], b.seed) for b in branches]
        await gather(branch.recompute() for branch in branches)
        after = decoder.stats()
        assert [(b.tokens, b.logprobs, b.steps, b.seed) for b in branches] == told
        assert (
            after.forward_tokens - before.forward_tokens < len(PROMPT) + 5 * 5
        )  # a branch's own and its last
        assert after.resident_bytes <= before.resident_bytes + decoder.stats().page_bytes
        for branch in branches:
            close(await branch.next_logprobs(), expected(model, branch.tokens))
            branch.release()
        assert decoder.stats().branches == decoder.stats().resident_bytes == 0

    decoder.run(train())


def test_embeddings_are_kept() -> None:
    model = tiny_model()
    decoder = make(model)
    embeds = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    async def train() -> None:
        root = await decoder.root(PROMPT)
        await root.extend_embeds(embeds)
        await root.extend([7])
        in_place(model)
        (child,) = root.fork()
        await gather(branch.recompute() for branch in (root, child))
        table = model.get_input_embeddings()
        with torch.no_grad():
            inputs = torch.cat([table(torch.tensor(PROMPT)), embeds, table(torch.tensor([7]))])
            plain = model(inputs_embeds=inputs[None]).logits[0, -1].log_softmax(-1)
        for branch in (root, child):
            close(await branch.next_logprobs(), plain)

    decoder.run(train())


@pytest.mark.parametrize("failure", ["cancelled", "out of pages", "released"])
def test_a_recompute_that_fails_changes_nothing(failure: str) -> None:
    model = tiny_model()
    pages = make(model).stats().page_bytes
    small = TreeDecoder(model, byte_tokenizer(), kv_bytes=8 * pages, max_batch_tokens=8)

    async def train() -> None:
        root = await small.root(PROMPT, SamplingParams(temperature=0, max_step_tokens=4))
        tokens = list(root.tokens)
        in_place(model)
        other = await small.root([1] * 100)
        if failure != "out of pages":
            other.release()
            task = asyncio.ensure_future(root.recompute())
            while small.stats().unique_tokens < 20:
                await asyncio.sleep(0)
            if failure == "cancelled":
                task.cancel()
                await asyncio.wait([task])
            else:
                root.release()
                with pytest.raises(RuntimeError, match="released"):
                    await task
                assert small.stats().branches == 0
                return
        else:
            with pytest.raises(RuntimeError, match="KV pages"):
                await root.recompute()
            other.release()
        assert root.stale
        assert root.tokens == tokens
        assert (small.stats().branches, small.stats().resident_bytes) == (1, 0)
        await root.recompute()
        close(await root.next_logprobs(), expected(model, tokens))

    small.run(train())


# -- while calls wait


@PATHS
def test_a_step_in_flight_ends_with_the_tokens_it_has(pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=30))
        branches = root.fork(3)
        steps = [asyncio.ensure_future(branch.step()) for branch in branches]
        while branches[0].length < len(PROMPT) + 5:
            await asyncio.sleep(0)
        in_place(model)
        results = await asyncio.gather(*steps, return_exceptions=True)
        assert all(isinstance(result, StaleKVError) for result in results)
        for branch in branches:
            assert branch.length == len(PROMPT) + 5
            assert len(branch.logprobs) == 5
            await branch.recompute()
            close(await branch.next_logprobs(), expected(model, branch.tokens))
            await branch.step(max_step_tokens=2)

    decoder.run(train())


@PATHS
def test_forced_text_in_flight_is_not_kept_and_prompts_start_over(pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights, max_batch_tokens=8)

    async def train() -> None:
        root = await decoder.root([1, 2, 3])
        kept = list(root.tokens)
        calls = [root.extend([5] * 40), decoder.root(PROMPT), decoder.root([*PROMPT, 9])]
        tasks = [asyncio.ensure_future(call) for call in calls]
        while decoder.stats().unique_tokens < 30:
            await asyncio.sleep(0)
        in_place(model)
        forced, first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(forced, StaleKVError)
        assert root.tokens == kept
        for branch in (first, second):
            assert isinstance(branch, TreeBranch)
            close(await branch.next_logprobs(), expected(model, branch.tokens))
        await root.recompute()
        tokens = [5] * 40
        close(await root.extend(tokens), plain_logprobs(model, kept + tokens)[2:-1, 5])

    decoder.run(train())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), pack_weights=st.booleans())
def test_random_programs(seed: int, pack_weights: bool) -> None:
    rng = random.Random(seed)
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights, max_batch_tokens=rng.choice([8, 512]))
    sampling = SamplingParams(max_step_tokens=3)

    async def renewed(branch: TreeBranch, call: Callable[[], Any]) -> Any:
        """The call, after a recompute where it is due; nothing in between."""
        try:
            return await call()
        except StaleKVError:
            assert branch.stale
            await branch.recompute()
            return await call()

    async def program() -> None:
        branches: list[TreeBranch] = [await decoder.root(PROMPT, sampling)]
        pins = []
        for _ in range(14):
            branch = rng.choice(branches)
            match rng.choice(
                ["root", "fork", "pin", "release", "step", "extend", "truncate", *["change"] * 3]
            ):
                case "root":
                    prompt = branch.tokens[: rng.randint(1, branch.length)]
                    branches.append(await decoder.root(prompt, sampling))
                case "fork":
                    branches += branch.fork(2, at=rng.randint(1, branch.length))
                case "pin" if not branch.stale and branch.kv_length:
                    pins.append(await renewed(branch, lambda b=branch: async_pin(decoder, b)))
                case "release" if len(branches) > 1:
                    branches.remove(branch)
                    branch.release()
                case "step":
                    await gather(renewed(b, b.step) for b in {branch, rng.choice(branches)})
                case "extend":
                    forced = [rng.randrange(256) for _ in range(rng.randint(1, 20))]
                    got = await renewed(branch, lambda b=branch, f=forced: b.extend(f))
                    rows = plain_logprobs(model, branch.tokens)[-len(forced) - 1 : -1]
                    alike(got, rows[range(len(forced)), forced])
                case "truncate":
                    branch.truncate(rng.randint(1, branch.length))
                case "change":
                    SEEN[rng.choice(["in_place", "data_replaced_twice", "AdamW fused", "layer_replaced"])](
                        model
                    )
            shown = rng.choice(branches)
            alike(await renewed(shown, shown.next_logprobs), expected(model, shown.tokens))
        for branch in branches:
            branch.release()
        for pin in pins:
            pin.release()
        assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)

    decoder.run(program())


def alike(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of weights that grew; what is of other ones is off by 0.1 at least."""
    torch.testing.assert_close(actual, wanted, atol=5e-3, rtol=0)


async def async_pin(decoder: TreeDecoder, branch: TreeBranch) -> Any:
    return decoder.pin(branch)


# -- around it


def test_decoders_of_a_model_notice_alike_and_share_what_is_packed() -> None:
    model = tiny_model()
    first, second = make(model), make(model)

    async def train() -> None:
        roots = [await decoder.root(PROMPT) for decoder in (first, second)]
        data_written(model)
        first.weights_changed()
        for root in roots:
            with pytest.raises(StaleKVError):
                await root.next_logprobs()
            await root.recompute()
            close(await root.next_logprobs(), expected(model, PROMPT))
        assert first.runtime.engine.packed is second.runtime.engine.packed
        assert first.weights_epoch == second.weights_epoch

    asyncio.run(train())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda model: model.to(torch.bfloat16), "dtype changed from torch.float32 to torch.bfloat16"),
        (lambda model: model.resize_token_embeddings(300), "embedding table changed"),
    ],
)
@PATHS
def test_a_model_that_no_longer_fits_is_refused(change: Any, match: str, pack_weights: bool) -> None:
    model = tiny_model()
    decoder = make(model, pack_weights=pack_weights)

    async def train() -> None:
        root = await decoder.root(PROMPT)
        change(model)
        for _ in range(2):
            with pytest.raises(UnsupportedModelError, match=match):
                await decoder.root(PROMPT)
        with pytest.raises(StaleKVError):
            await root.step()
        fresh = await make(model, pack_weights=pack_weights).root(PROMPT)
        torch.testing.assert_close(
            await fresh.next_logprobs(),
            expected(model, PROMPT).float(),
            atol=0.3,
            rtol=0,  # bfloat16
        )

    asyncio.run(train())


def test_a_model_in_training_is_served_in_eval_mode() -> None:
    model = tiny_model()
    adapter_added(model)
    decoder = make(model)
    plain = expected(model, PROMPT)
    model.train()
    layer(model).mlp.eval()

    async def rollout() -> None:
        root = await decoder.root(PROMPT)
        close(await root.next_logprobs(), plain)

    decoder.run(rollout())
    assert model.training
    assert not layer(model).mlp.training
    assert layer(model).self_attn.training


def test_parts_in_training_are_served_in_eval_mode() -> None:
    """As after `model.model.train()`, which leaves the head's flag as it is."""
    model = tiny_model()
    adapter_added(model)
    decoder = make(model)
    plain = expected(model, PROMPT)
    model.model.train()

    async def rollout() -> None:
        root = await decoder.root(PROMPT)
        close(await root.next_logprobs(), plain)

    decoder.run(rollout())
    assert not model.training
    assert model.model.training
    assert layer(model).mlp.gate_proj.dropout.training


@PATHS
def test_frequencies_that_each_forward_writes_are_no_change(pack_weights: bool) -> None:
    """Rotary embeddings of type longrope write theirs, of which equal lists are served."""
    longrope = {"rope_type": "longrope", "short_factor": [1.5] * 16, "long_factor": [1.5] * 16}
    model = tiny_model(
        rope_parameters=longrope | {"rope_theta": 1e4, "original_max_position_embeddings": len(PROMPT) + 2}
    )
    decoder = make(model, pack_weights=pack_weights)

    async def rollout() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=5))
        epoch, packed = decoder.weights_epoch, decoder.runtime.engine.packed
        (child,) = root.fork()
        for branch in (root, child):
            await branch.step()
            close(await branch.next_logprobs(), expected(model, branch.tokens))
        assert make(model, pack_weights=pack_weights).weights_epoch == epoch == decoder.weights_epoch
        assert decoder.runtime.engine.packed is packed
        model.model.rotary_emb.inv_freq.mul_(0.5)
        assert decoder.weights_epoch > epoch

    decoder.run(rollout())


def test_weights_that_nobody_wrote_stay() -> None:
    """An optimizer of another model, or without gradients, and reading."""
    model, other = tiny_model(), tiny_model()
    decoder = make(model)
    epoch = decoder.weights_epoch
    optimizer(torch.optim.SGD)(other)
    torch.optim.AdamW(model.parameters(), fused=True).step()
    model.state_dict()
    expected(model, PROMPT)
    decoder.run(decoder.root(PROMPT))
    assert decoder.weights_epoch == epoch


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_search_over_changed_weights_ends_with_an_error(name: str) -> None:
    model = tiny_model()
    model.config.max_position_embeddings = 4096
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=16 << 20)
    sampling = SamplingParams(max_tokens=24, max_step_tokens=6, seed=5)

    async def train() -> None:
        while decoder.stats().steps < 4:
            await asyncio.sleep(0)
        in_place(model)

    async def search() -> None:
        root = await decoder.root("What is 2 + 3?", sampling)
        training = asyncio.ensure_future(train())
        with pytest.raises(StaleKVError):
            await STRATEGIES[name](root, **small_options(name))
        await training
        root.release()
        assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)

    decoder.run(search())
