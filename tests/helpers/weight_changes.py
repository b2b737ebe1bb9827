"""Changes to the weights of a tiny model, which a decoder detects or is told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import PreTrainedModel

PROMPT = list(range(40, 90))
PATHS = pytest.mark.parametrize("pack_weights", [True, False], ids=["packed", "general"])


def layer(model: PreTrainedModel) -> Any:
    return model.model.layers[1]


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
