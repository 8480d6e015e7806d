"""The average of the weights: its numbers, what it leaves alone, and that it stands apart from the run."""

import numpy as np
import pytest
import torch
from torch import nn

from codebrush.training.engine.ema import EMA


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).requires_grad_(False))


def test_the_average_follows_its_formula_and_forgets_fast_at_first():
    network = small()
    average = EMA(network, decay=0.9)
    expected = network[0].weight.detach().numpy().astype(np.float64)
    for step in range(1, 120):
        with torch.no_grad():
            network[0].weight.add_(torch.randn(3, 2))
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network[0].weight.detach().numpy()
    np.testing.assert_allclose(average.values["0.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_averaged_network_takes_what_is_not_trained_as_it_stands():
    network = small()
    average = EMA(network, decay=0.99)
    network[1].running_mean.fill_(5.0)
    with torch.no_grad():
        network[0].bias.fill_(7.0)
        network[2].weight.fill_(3.0)
    averaged = average.network(network)
    assert (averaged[1].running_mean == 5).all()
    assert (averaged[2].weight == 3).all()
    assert (averaged[0].bias != 7).all()
    assert sorted(average.values) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_neither_the_run_nor_the_average_can_change_the_other_s_weights():
    network = small()
    average = EMA(network, decay=0.5)
    averaged = average.network(network)
    before = averaged[0].weight.clone()
    with torch.no_grad():
        network[0].weight.add_(1)
    average.update(network, 1)
    assert torch.equal(averaged[0].weight, before)
    assert not torch.equal(average.values["0.weight"], network[0].weight)


def test_an_average_goes_on_from_a_stored_one():
    network = small()
    first, second = EMA(network, 0.9), EMA(network, 0.9)
    with torch.no_grad():
        network[0].weight.add_(1)
    first.update(network, 50)
    second.load({name: value.clone() for name, value in first.values.items()})
    for average in (first, second):
        average.update(network, 51)
    assert all(torch.equal(first.values[name], second.values[name]) for name in first.values)
    with pytest.raises(KeyError, match="another network's"):
        second.load({"another network's": torch.zeros(1)})
