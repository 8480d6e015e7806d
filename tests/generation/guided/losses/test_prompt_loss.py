"""Prompts as embeddings and the loss of views: distances, weights, stops, blends."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.losses.prompt_loss import (
    PromptEmbeddings,
    cosine_distance,
    embed_prompt,
    join_prompts,
    noise_prompts,
    prompt_loss,
    similarity,
    spherical_distance,
)
from codebrush.text.prompts import parse_prompt

E = 6


def unit(*rows: Sequence[float]) -> Tensor:
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


def prompts(embeddings: Tensor, weights: Sequence[float], stops: Sequence[float] | None = None) -> PromptEmbeddings:
    stops = [-math.inf] * len(weights) if stops is None else stops
    return PromptEmbeddings(embeddings, torch.tensor(weights).double(), torch.tensor(stops).double())


def embed(texts: Sequence[str]) -> Tensor:
    """A unit vector for each text, the same whenever it is asked for."""
    rows = [torch.randn(E, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def test_spherical_distance_is_half_the_squared_angle() -> None:
    angles = torch.linspace(0.01, 3.1, 40, dtype=torch.float64)
    views = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = spherical_distance(views, unit([1, 0]))[:, 0]
    torch.testing.assert_close(found, angles.square() / 2, rtol=1e-4, atol=1e-6)


def test_cosine_distance() -> None:
    views, wanted = unit([1, 0], [0, 1], [-1, 0]), unit([1, 0], [1, 1])
    expected = torch.tensor([[0, 1 - 0.5**0.5], [1, 1 - 0.5**0.5], [2, 1 + 0.5**0.5]]).double()
    torch.testing.assert_close(cosine_distance(views, wanted), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", [spherical_distance, cosine_distance])
def test_distances_have_the_right_gradient(distance) -> None:
    torch.manual_seed(1)
    views, wanted = torch.randn(3, E).double(), unit(*torch.randn(2, E).tolist())
    assert torch.autograd.gradcheck(
        lambda v: distance(F.normalize(v, dim=-1), wanted), views.requires_grad_(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_and_opposite_vectors_have_a_finite_gradient(dtype: torch.dtype) -> None:
    one = unit([1, 2, 3]).to(dtype)
    views = torch.cat([one, -one]).requires_grad_()
    loss = spherical_distance(views, one)
    loss.sum().backward()
    assert views.grad is not None
    assert bool(views.grad.isfinite().all())
    assert float(loss[0].detach()) == pytest.approx(0, abs=1e-6)
    assert float(loss[1].detach()) == pytest.approx(math.pi**2 / 2, rel=2e-3)


def test_weights_add_up_and_push_away() -> None:
    views, wanted = unit([1, 0, 0]), unit([1, 1, 0], [0, 1, 1])
    both = prompt_loss(views, prompts(wanted, [2.0, -0.5]), "cosine")
    parts = cosine_distance(views, wanted)[0]
    assert float(both) == pytest.approx(float(2 * parts[0] - 0.5 * parts[1]))


@pytest.mark.parametrize(
    ("weight", "stop", "pulls"), [(1, 0.5, False), (1, 0.2, True), (-1, -0.2, False), (-1, -0.5, True)]
)
def test_a_stop_ends_the_gradient_and_not_the_value(weight: float, stop: float, pulls: bool) -> None:
    wanted = unit([1, 1])
    views = unit([1, 0]).requires_grad_()  # at a cosine distance of 0.29
    loss = prompt_loss(views, prompts(wanted, [weight], [stop]), "cosine")
    (gradient,) = torch.autograd.grad(loss.sum(), views)
    assert bool(gradient.any()) == pulls
    assert float(loss.detach()) == pytest.approx(weight * (1 - 0.5**0.5))


def test_similarity_is_of_what_is_wanted_alone() -> None:
    views, wanted = unit([1, 0], [0, 1]), unit([1, 0], [0, 1], [-1, 0])
    found = similarity(views, prompts(wanted, [3.0, 1.0, -5.0]))
    assert float(found) == pytest.approx(0.5)
    assert not found.requires_grad


def test_parts_keep_their_weights_and_stops() -> None:
    found = embed_prompt(parse_prompt("a dog:2:0.4 | blurry:-0.5 | a cat").parts, GuideOptions(alpha=0.5), embed)
    assert torch.equal(found.embeddings, embed(["a dog", "blurry", "a cat"]))
    assert found.weights.tolist() == [1.0, -0.25, 0.5]
    assert found.stops.tolist() == pytest.approx([0.4, -math.inf, -math.inf])


def test_extras_are_mixed_into_what_is_wanted() -> None:
    options = GuideOptions(extra=("oil", "paint"), include="a cat", w1=0.7, w2=0.4)
    found = embed_prompt(parse_prompt("a dog | blurry:-1").parts, options, embed)
    extra = embed(["oil", "paint"]).mean(0)
    mixed = F.normalize(0.7 * embed(["a dog", "a cat"]) + 0.4 * extra, dim=-1)
    torch.testing.assert_close(found.embeddings[[0, 2]], mixed)
    torch.testing.assert_close(found.embeddings[1], embed(["blurry"])[0])
    assert found.weights.tolist() == [1, -1, 1]


@pytest.mark.parametrize("weights", [{"w1": 0, "w2": 0}, {"w1": 1, "w2": -1}], ids=str)
def test_a_mixture_that_cancels_out_is_refused(weights: dict[str, float]) -> None:
    options = GuideOptions(extra="a dog", **weights)
    with pytest.raises(UsageError, match=r"^w1 \d and w2 -?\d leave nothing of prompt and extra"):
        embed_prompt(parse_prompt("a dog").parts, options, embed)


def test_what_is_pushed_away_is_not_mixed_and_may_cancel_out() -> None:
    options = GuideOptions(extra="blurry", w1=1, w2=-1)
    found = embed_prompt(parse_prompt("a dog | blurry:-1").parts, options, embed)
    torch.testing.assert_close(found.embeddings.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("distance", ["spherical", "cosine"])
@pytest.mark.parametrize(("alpha", "beta", "axis", "sign"), [(1.0, 0.0, 0, 1), (0.0, 0.5, 1, -1)])
def test_descent_goes_to_the_prompt_and_away_from_the_excluded(
    distance: str, alpha: float, beta: float, axis: int, sign: int
) -> None:
    options = GuideOptions(exclude="a cat", alpha=alpha, beta=beta)
    axes = {"a dog": [1.0, 0.0, 0.0], "a cat": [0.0, 1.0, 0.0]}
    found = embed_prompt(
        parse_prompt("a dog").parts, options, lambda texts: torch.tensor([axes[text] for text in texts])
    )
    view = F.normalize(torch.ones(1, 3), dim=-1).requires_grad_()
    before = float(view[0, axis].detach())
    for _ in range(10):
        (gradient,) = torch.autograd.grad(prompt_loss(F.normalize(view, dim=-1), found, distance).sum(), view)
        view.data -= 0.05 * gradient
    assert sign * (float(F.normalize(view.detach(), dim=-1)[0, axis]) - before) > 0.05


def test_the_excluded_share_beta() -> None:
    found = embed_prompt(parse_prompt("a dog").parts, GuideOptions(exclude=("a cat", "a cow"), beta=0.6), embed)
    torch.testing.assert_close(found.embeddings, embed(["a dog", "a cat", "a cow"]))
    assert found.weights.tolist() == pytest.approx([1.0, -0.3, -0.3])
    assert found.stops.tolist() == [-math.inf] * 3


def test_the_notebooks_loss() -> None:
    """-alpha cos(normalise(w1 prompt + w2 extra)) + beta cos(exclude), but for a constant."""
    options = GuideOptions(extra=("oil",), exclude=("a cat",), w1=1.0, w2=0.1, alpha=1.0, beta=0.5, distance="cosine")
    views = embed(["x", "y"])
    found = prompt_loss(views, embed_prompt(parse_prompt("a dog").parts, options, embed), "cosine")
    mixed = F.normalize(embed(["a dog"]) + 0.1 * embed(["oil"]), dim=-1)
    expected = -(views @ mixed.T)[:, 0] + 0.5 * (views @ embed(["a cat"]).T)[:, 0]
    torch.testing.assert_close(found, expected + 1.0 - 0.5)


def test_prompts_are_joined_in_order() -> None:
    one, two = prompts(unit([1, 0]), [1.0]), prompts(unit([0, 1], [1, 1]), [2.0, 3.0], [0.1, 0.2])
    both = join_prompts([one, two])
    assert both.weights.tolist() == [1, 2, 3]
    assert len(both) == len(both.stops) == len(both.embeddings) == 3


def test_noise_prompts_are_their_seeds() -> None:
    found = noise_prompts(["3:0.5:0.2", "4", "3"], 2048)
    assert torch.equal(found.embeddings[0], found.embeddings[2])
    assert float(found.embeddings[0] @ found.embeddings[1]) == pytest.approx(0, abs=0.1)
    torch.testing.assert_close(found.embeddings.norm(dim=-1), torch.ones(3))
    assert found.weights.tolist() == [0.5, 1, 1]
    assert found.stops.tolist() == pytest.approx([0.2, -math.inf, -math.inf])
    assert len(noise_prompts(["9" * 20], 4)) == 1


@pytest.mark.parametrize("text", ["x", "-1", "1.5:2", "³", "", ":2", "1" * 21, "1" * 5000], ids=lambda text: text[:9])
def test_a_noise_prompt_that_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^noise_prompt must begin with a seed"):
        noise_prompts([text], 4)
