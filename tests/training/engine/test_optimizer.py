"""Which parameters decay, and how the learning rate moves."""

import copy
import math

import pytest
import torch
from torch import nn

from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.training.engine.learning_rate import cosine_schedule
from codebrush.training.engine.optimizer import make_adamw


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.kernel = nn.Conv2d(1, 2, 3)
        self.norm = nn.LayerNorm(4)
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_only_matrices_and_kernels_decay():
    network = Mixed()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, kept = make_adamw([network], 1e-3, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {names[each] for each in decayed["params"]} == {"linear.weight", "kernel.weight"}
    expected = {"table.weight", "linear.bias", "kernel.bias", "norm.weight", "norm.bias", "positions"}
    assert {names[each] for each in kept["params"]} == expected


def test_every_trained_parameter_of_a_clip_is_in_one_group():
    text = TextTransformerConfig(20, 8, 8, 1, 2, 4, token_width=6)
    clip = CLIP.from_config(CLIPConfig(ModifiedResNetConfig(32, 4, (1, 1, 1, 1), 4, 4), text))
    clip.text_encoder.token_embedding.requires_grad_(False)
    groups = make_adamw([clip], 1e-3, weight_decay=0.1).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in clip.parameters() if parameter.requires_grad)


def test_a_network_without_matrices_makes_one_group():
    assert len(make_adamw([nn.LayerNorm(4)], 1e-3, weight_decay=0.1).param_groups) == 1


def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    factors = [cosine_schedule(step, 110, 10) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx((1 + 0.01) / 2)
    assert factors[35] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0.01 < factors[-1] < 0.011
    assert cosine_schedule(110, 110, 10) == pytest.approx(0.01)
    assert cosine_schedule(500, 110, 10) == pytest.approx(0.01)


def test_without_warm_up_the_rate_starts_at_its_full_height():
    assert cosine_schedule(0, 100, 0) == 1.0


def test_each_factor_on_the_rate_makes_its_groups():
    factors = {"table.weight": 0.5, "linear.weight": 0.5, "linear.bias": 0.25}
    network = Mixed()
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = make_adamw([network], 0.8, 0.3, rate_factor=lambda _, name: factors.get(name, 1.0)).param_groups
    found = [({names[each] for each in group["params"]}, group["lr"], group["weight_decay"]) for group in groups]
    assert found == [
        ({"linear.bias"}, 0.2, 0.0),
        ({"linear.weight"}, 0.4, 0.3),
        ({"table.weight"}, 0.4, 0.0),
        ({"kernel.weight"}, 0.8, 0.3),
        ({"kernel.bias", "norm.weight", "norm.bias", "positions"}, 0.8, 0.0),
    ]


def test_a_state_of_the_plain_optimizer_goes_on_to_the_same_bits():
    """Runs that began before the fused kernel keep the arithmetic that they began with."""

    def step(optimizer: torch.optim.Optimizer, network: nn.Module, number: int) -> None:
        torch.manual_seed(number)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    network, copied = nn.Linear(5, 7), nn.Linear(5, 7)
    fused = make_adamw([network], 1e-2, weight_decay=0.1)
    groups = [{**group, "fused": None} for group in fused.state_dict()["param_groups"]]
    plain = torch.optim.AdamW([{"params": group["params"]} for group in fused.param_groups])
    plain.load_state_dict({"state": {}, "param_groups": groups})
    for number in range(3):
        step(plain, network, number)
    copied.load_state_dict(network.state_dict())
    resumed = make_adamw([copied], 1e-2, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    for number in range(3, 6):
        step(plain, network, number)
        step(resumed, copied, number)
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), copied.parameters(), strict=True))
    fresh = make_adamw([copied], 1e-2)
    assert [group["fused"] for group in fresh.param_groups] == [True, True]


def test_a_step_is_that_of_adam_with_decoupled_decay():
    network = nn.Linear(1, 1)
    start = [float(parameter.detach()) for parameter in (network.weight, network.bias)]
    optimizer = make_adamw([network], 0.1, weight_decay=0.5)
    found = []
    for gradient in (2.0, -1.0):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        found.append([float(parameter.detach()) for parameter in (network.weight, network.bias)])
    first, second = 0.0, 0.0
    for number, gradient in enumerate((2.0, -1.0), start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        move = 0.1 * first / (1 - 0.9**number) / (math.sqrt(second / (1 - 0.98**number)) + 1e-8)
        start = [start[0] * (1 - 0.1 * 0.5) - move, start[1] - move]  # weight, bias
        assert found[number - 1] == pytest.approx(start, rel=1e-5)
