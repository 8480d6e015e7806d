import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from codebrush.errors import PackError, UsageError
from codebrush.models import vqgan_sizes as sizes
from codebrush.models.pretrained import config_from_dict, config_to_dict
from codebrush.models.quantizers.vector_quantizer import VectorQuantizer
from codebrush.models.vqgan import VQGAN, VQGANConfig

TINY = VQGANConfig(
    image_size=8,
    channels=4,
    channel_multipliers=(1, 2),
    attention_resolutions=(4,),
    middle_attention=True,
    norm_groups=2,
    latent_channels=6,
    code_dim=3,
    codebook_size=12,
)
KINDS = {
    "cosine": TINY,
    "euclidean": dataclasses.replace(TINY, l2_normalized=False),
    "ema": dataclasses.replace(TINY, codebook_update="ema"),
    "gumbel": dataclasses.replace(TINY, quantizer="gumbel"),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(config: VQGANConfig) -> VQGAN:
    """A VQGAN in eval mode whose codebook and biases are random."""
    vqgan = VQGAN(config).eval()
    for parameter in vqgan.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    torch.nn.init.normal_(vqgan.quantizer.codebook)
    return vqgan


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_images_become_codes_and_come_back(config: VQGANConfig) -> None:
    vqgan = made(config)
    images = torch.rand(2, 3, 16, 12)  # a size that is not the config's
    latent = vqgan.encode(images)
    assert latent.shape == (2, 3, 8, 6)
    quantised, codes = vqgan.quantize(latent)
    assert (quantised.shape, codes.shape, codes.dtype) == (latent.shape, (2, 8, 6), torch.int64)
    assert codes.min() >= 0
    assert codes.max() < vqgan.codebook_size
    back = vqgan.decode(quantised)
    assert back.shape == images.shape
    torch.testing.assert_close(vqgan.decode_codes(codes), back)
    assert vqgan.code_grid((16, 12)) == (8, 6)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_forward_is_the_three_steps_and_the_loss(config: VQGANConfig) -> None:
    vqgan = made(config)
    images = torch.rand(2, 3, 8, 8)
    out = vqgan(images)
    latent = vqgan.encode(images)
    quantised, codes = vqgan.quantize(latent)
    torch.testing.assert_close(out.latent, latent)
    torch.testing.assert_close(out.quantised, quantised)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.images, vqgan.decode(quantised))
    torch.testing.assert_close(out.codebook_loss, vqgan.quantizer(latent).loss)
    compared = F.normalize(latent, dim=1) if config.quantizer == "vector" and config.l2_normalized else latent
    torch.testing.assert_close(out.distance, (compared - quantised).square().mean().detach())


def test_decoding_is_linear_to_the_unit_range_and_unclamped() -> None:
    vqgan = made(TINY)
    with torch.no_grad():
        vqgan.decoder.conv_out.weight.zero_()
        vqgan.decoder.conv_out.bias.copy_(torch.tensor([-1.0, 0.0, 3.0]))
    colour = vqgan.decode(torch.randn(1, 3, 2, 2))[0, :, 0, 0]
    torch.testing.assert_close(colour.detach(), torch.tensor([0.0, 0.5, 2.0]))


def test_the_encoder_sees_pixels_between_minus_one_and_one() -> None:
    vqgan = made(TINY)
    seen = []
    vqgan.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vqgan.encode(torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, -0.5, 1.0]))


@pytest.mark.parametrize("config", [KINDS["cosine"], KINDS["euclidean"]], ids=["cosine", "euclidean"])
def test_the_latents_gradient_is_the_decoders_and_that_agrees_with_differences(config: VQGANConfig) -> None:
    vqgan = made(config).double()
    latent = 2 * torch.randn(1, 3, 2, 2, dtype=torch.float64)
    target = torch.rand(1, 3, 4, 4, dtype=torch.float64)

    def loss(quantised: torch.Tensor) -> torch.Tensor:
        return (vqgan.decode(quantised) - target).square().sum()

    free = latent.clone().requires_grad_()
    quantised, _ = vqgan.quantize(free)
    (through,) = torch.autograd.grad(loss(quantised), free)
    fixed = quantised.detach().requires_grad_()
    (direct,) = torch.autograd.grad(loss(fixed), fixed)
    assert torch.equal(through, direct)

    step = 1e-5
    with torch.no_grad():
        for index in range(fixed.numel()):
            delta = torch.zeros(fixed.numel(), dtype=torch.float64)
            delta[index] = step
            delta = delta.view_as(fixed)
            slope = (loss(fixed + delta) - loss(fixed - delta)) / (2 * step)
            torch.testing.assert_close(direct.flatten()[index], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_every_weight_learns(config: VQGANConfig) -> None:
    vqgan = made(config).train()
    if isinstance(vqgan.quantizer, VectorQuantizer):
        vqgan.quantizer.initialised.fill_(True)
    images = torch.rand(2, 3, 8, 8)
    out = vqgan(images)
    ((out.images - images).square().mean() + out.codebook_loss).backward()
    learning = {
        name: parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        for name, parameter in vqgan.named_parameters()
        if parameter.requires_grad and not name.endswith(".k.bias")  # softmax cancels the bias of the keys
    }
    assert [name for name, learns in learning.items() if not learns] == []


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_a_saved_vqgan_comes_back_bit_for_bit(config: VQGANConfig, tmp_path: Path) -> None:
    vqgan = made(config)
    vqgan.save_pretrained(tmp_path)
    again = VQGAN.from_pretrained(tmp_path)
    assert again.config == vqgan.config
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(again(images).images, vqgan(images).images)
    for key, tensor in vqgan.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_a_few_steps_of_training_lower_the_error() -> None:
    vqgan = VQGAN(dataclasses.replace(TINY, channels=16, norm_groups=8, codebook_size=32)).train()
    optimizer = torch.optim.Adam(vqgan.parameters(), 3e-3)
    ramp = torch.linspace(0, 1, 8)
    colours = torch.rand(8, 3, 1, 1)
    images = colours * ramp[:, None] + (1 - colours) * ramp[None, :].square()  # (8, 3, 8, 8)
    errors = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            out = vqgan(images)
        error = (out.images.float() - images).square().mean()
        optimizer.zero_grad()
        (error + out.codebook_loss).backward()
        optimizer.step()
        errors.append(error.item())
    assert vqgan.quantizer.initialised
    assert errors[-1] < errors[0] / 4
    vqgan.eval()
    assert (vqgan(images).images - images).square().mean() < errors[0] / 4


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (0, 8), 7])
def test_a_size_without_whole_codes_is_refused(size: int | tuple[int, int]) -> None:
    vqgan = VQGAN(TINY)
    with pytest.raises(UsageError, match="multiples of 2"):
        vqgan.code_grid(size)
    if size == (9, 8):
        with pytest.raises(UsageError, match="8x9"):
            vqgan.encode(torch.rand(1, 3, 9, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantizer": "product"}, "'product'"),
        ({"codebook_update": "never"}, "'never'"),
        ({"image_size": 9}, "multiple of 2"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(PackError, match=message):
        dataclasses.replace(TINY, **change)


NAMED = [
    sizes.vqgan_micro(),
    sizes.vqgan_small(),
    sizes.vqgan_base(),
    sizes.vqgan_taming_f16(),
    sizes.vqgan_taming_f16(1024),
    sizes.vqgan_taming_gumbel_f8(),
]


@pytest.mark.parametrize("config", NAMED)
def test_named_sizes_survive_json_and_can_be_built(config: VQGANConfig) -> None:
    assert config_from_dict(VQGANConfig, json.loads(json.dumps(config_to_dict(config)))) == config
    with torch.device("meta"):
        vqgan = VQGAN(config)
    assert vqgan.factor == config.factor
    rows, columns = vqgan.code_grid(config.image_size)
    assert rows == columns == config.image_size // config.factor


def test_attention_sits_where_the_config_says() -> None:
    with torch.device("meta"):
        vqgan = VQGAN(sizes.vqgan_taming_f16())
    assert [len(level.attn) for level in vqgan.encoder.down] == [0, 0, 0, 0, 2]
    assert [len(level.attn) for level in vqgan.decoder.up] == [0, 0, 0, 0, 3]
    assert [len(level.block) for level in vqgan.decoder.up] == [3] * 5
