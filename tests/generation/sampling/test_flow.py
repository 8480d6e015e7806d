"""Following a flow, on one whose velocity is known in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.options import FlowSettings
from codebrush.generation.sampling.flow import KnownLatent, draw_latents, picture_noise
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig

SHAPE = (2, 4, 4)
SPREAD = 0.3


class Gaussian(FlowTransformer):
    """The exact velocity for latents that are normally distributed with deviation SPREAD around a centre: 0 without a
    condition, the number in its text embedding with one."""

    def __init__(self) -> None:
        super().__init__(FlowTransformerConfig(2, (4, 4), 16, 1, 2, unit_latents=False, text_embedding=1))
        self.calls = 0
        self.times: list[tuple[float, bool]] = []

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        self.calls += 1
        t = time[:, None, None, None]
        given = None if condition is None else condition.text_embedding
        self.times.append((round(float(time[0]), 6), given is not None))
        centre = x.new_zeros(1) if given is None else given
        centre = centre.view(-1, 1, 1, 1)
        rest = (x - (1 - t) * centre) / ((1 - t) ** 2 * SPREAD**2 + t**2)
        return t * rest - (centre + (1 - t) * SPREAD**2 * rest)  # E[e - x | x_t]


def asked(centre: float) -> Condition:
    return Condition(text_embedding=torch.tensor([[centre]]))


def drawn(settings: FlowSettings, cfg: float = 1.0, centre: float = 2.0, **options) -> tuple[Tensor, Tensor, Gaussian]:
    """What was drawn, what exactly following the flow gives (the noise, squeezed and moved), and the network."""
    flow, noise = Gaussian().eval(), picture_noise(3, range(2), SHAPE)
    return draw_latents(flow, asked(centre), noise, settings, cfg, **options), centre + SPREAD * noise, flow


def error(settings: FlowSettings) -> float:
    found, exact, _ = drawn(settings)
    return float((found - exact).abs().max())


def test_all_samplers_end_where_the_flow_leads() -> None:
    assert error(FlowSettings(1000, "euler")) < 0.01
    assert error(FlowSettings(100, "heun")) < 0.01
    assert error(FlowSettings(100, "dpm")) < 0.01


@pytest.mark.parametrize(("sampler", "least"), [("euler", 1.7), ("heun", 3.0), ("dpm", 2.4)])
def test_twice_the_steps_lower_the_error_as_the_order_says(sampler: str, least: float) -> None:
    rough, fine = error(FlowSettings(50, sampler)), error(FlowSettings(100, sampler))
    assert rough / fine > least
    assert sampler == "euler" or rough < error(FlowSettings(50, "euler")) / 3


def test_euler_and_heun_of_one_step_take_the_predicted_clean_latent() -> None:
    flow, noise = Gaussian(), picture_noise(3, range(2), SHAPE)
    clean = noise - flow(noise, torch.ones(2), asked(2.0))
    for sampler in ("euler", "heun", "dpm"):
        found, _, _ = drawn(FlowSettings(1, sampler))
        assert torch.allclose(found, clean, atol=1e-6)


def test_a_scale_of_1_is_no_guidance_and_others_move_on() -> None:
    settings = FlowSettings(20)
    plain, _, flow = drawn(settings, 1.0)
    assert (flow.calls, all(given for _, given in flow.times)) == (20, True)  # the empty condition is not computed
    flow = Gaussian()
    alone = draw_latents(flow, asked(2.0), picture_noise(3, range(2), SHAPE), settings)
    assert torch.equal(plain, alone)
    twice, _, flow = drawn(settings, 2.0)
    assert flow.calls == 40
    assert float(twice.mean()) == pytest.approx(2 * float(plain.mean()), abs=0.3)  # velocities are linear in the centre


def test_outside_its_interval_there_is_no_guidance() -> None:
    _, _, flow = drawn(FlowSettings(10, cfg_interval=(0.35, 0.75)), 3.0)
    without = [time for time, given in flow.times if not given]
    assert without == pytest.approx([0.7, 0.6, 0.5, 0.4])


def test_weighted_conditions_add_up() -> None:
    flow, noise, settings = Gaussian(), picture_noise(3, range(2), SHAPE), FlowSettings(20)
    mixed = draw_latents(flow, [(asked(2.0), 0.5), (asked(4.0), 0.5)], noise, settings)
    assert torch.allclose(mixed, draw_latents(flow, asked(3.0), noise, settings), atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm"])
def test_what_is_known_is_kept_to_the_bit(sampler: str) -> None:
    latent = torch.full((1, *SHAPE), 7.0)
    fixed = torch.zeros(1, 4, 4, dtype=torch.bool)
    fixed[:, :2] = True
    found, exact, _ = drawn(FlowSettings(30, sampler), known=KnownLatent(latent, fixed))
    assert torch.equal(found[:, :, :2], latent[:, :, :2].expand(2, -1, -1, -1))
    assert float((found[:, :, 2:] - exact[:, :, 2:]).abs().max()) < 0.1


def test_each_picture_has_its_own_noise_whoever_shares_its_batch() -> None:
    noise = picture_noise(5, [0, 1, 2], SHAPE)
    assert torch.equal(noise[1:], picture_noise(5, [1, 2], SHAPE))
    assert not torch.equal(noise[1], picture_noise(6, [1], SHAPE)[0])
    many = picture_noise(0, range(500), SHAPE).numpy()
    assert (many.mean(), many.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    assert np.abs(np.corrcoef(many.reshape(500, -1)[:2])[0, 1]) < 0.5


def test_progress_counts_steps() -> None:
    seen: list[tuple[int, int]] = []
    drawn(FlowSettings(4), progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_grid_without_whole_patches_is_refused() -> None:
    with pytest.raises(UsageError, match="a grid of 3 x 4 codes has no whole squares of 2 x 2"):
        draw_latents(Gaussian(), asked(1.0), torch.randn(1, 2, 3, 4), FlowSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, not 0"),
        ({"sampler": "ddim"}, "sampler must be one of euler, heun, dpm, not ddim"),
        ({"cfg_interval": (0.5, 0.5)}, "cfg_interval must be two rising times from 0 to 1, not 0.5,0.5"),
        ({"cfg_interval": (-0.1, 1)}, "cfg_interval must be two rising times"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FlowSettings(**changes)
