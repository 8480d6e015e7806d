from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.image_encoder import ImageEncoderConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.perceptual import CLIPPerceptual, VGGPerceptual

VIT = VisionTransformerConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2, embed_dim=16)
RESNET = ModifiedResNetConfig(image_size=32, width=8, blocks=(1, 1, 1, 1), heads=4, embed_dim=16)
# torchvision's vgg16().features: where its convolutions stand, and how wide they are
VGG = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
POOLS = (4, 9, 16, 23)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clip(image: ImageEncoderConfig) -> CLIP:
    text = TextTransformerConfig(vocab_size=20, context_length=8, width=16, layers=1, heads=2, embed_dim=16)
    return CLIP.from_config(CLIPConfig(image, text))


@pytest.mark.parametrize("image", [VIT, RESNET], ids=["vit", "resnet"])
def test_clip_distance_follows_its_definition(image: ImageEncoderConfig) -> None:
    distance = CLIPPerceptual(clip(image))
    first, second = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)
    found = distance(first, second)
    assert found.shape == (3,)
    tower = distance.clip.image_encoder
    pairs = zip(*(tower.features(distance.clip.normalise(x)) for x in (first, second)), strict=True)
    axis = -1 if image is VIT else 1
    expected = [(2 - 2 * F.cosine_similarity(a, b, dim=axis)).flatten(1).mean(1) for a, b in pairs]
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(distance(first, first), torch.zeros(3))


@pytest.mark.parametrize("image", [VIT, RESNET], ids=["vit", "resnet"])
def test_it_stays_frozen_in_eval_mode_and_only_the_first_pictures_get_a_gradient(image: ImageEncoderConfig) -> None:
    distance = CLIPPerceptual(clip(image)).train()
    assert not any(module.training for module in distance.modules())
    before = {key: tensor.clone() for key, tensor in distance.state_dict().items()}
    first, second = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32, requires_grad=True)
    distance(first, second).sum().backward()
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    assert second.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    for key, tensor in before.items():
        assert torch.equal(distance.state_dict()[key], tensor), key


def test_a_place_where_nothing_is_seen_gives_no_nan() -> None:
    model = clip(RESNET)
    torch.nn.init.zeros_(model.image_encoder.stages[-1][-1].norm3.weight)
    torch.nn.init.constant_(model.image_encoder.stages[-1][-1].norm3.bias, -100.0)
    pictures = torch.rand(1, 3, 32, 32, requires_grad=True)
    CLIPPerceptual(model)(pictures, torch.rand(1, 3, 32, 32)).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.isfinite().all()


def test_the_distance_grows_with_the_disturbance() -> None:
    distance = CLIPPerceptual(clip(VIT))
    target, noise = torch.rand(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    found = torch.stack([distance(target + scale * noise, target) for scale in (0.0, 0.05, 0.2, 0.8)])
    assert (found.diff(dim=0) > 0).all()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random weights in the published layouts: a PyTorch file of all VGG-16 names, and one of the heads."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    network: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    channels = 3
    for index, width in VGG.items():
        network[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        network[f"features.{index}.bias"] = 0.1 * torch.randn(width)
        channels = width
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate((64, 128, 256, 512, 512))}
    torch.save(network, folder / "vgg16.pth")
    torch.save(heads, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


def lpips(first: Tensor, second: Tensor, weights: tuple[Path, Path]) -> Tensor:
    """The metric written out, images in [0, 1] -> (B,)."""
    network, heads = (torch.load(path, weights_only=True) for path in weights)
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def maps(images: Tensor) -> list[Tensor]:
        x = (2 * images - 1 - mean[:, None, None]) / std[:, None, None]
        found = []
        for index in range(30):
            if index in VGG:
                x = F.conv2d(x, network[f"features.{index}.weight"], network[f"features.{index}.bias"], padding=1)
                x = F.relu(x)
            elif index in POOLS:
                found.append(x)
                x = F.max_pool2d(x, 2)
        return [*found, x]

    total = torch.zeros(len(first))
    for level, (a, b) in enumerate(zip(maps(first), maps(second), strict=True)):
        unit_a, unit_b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        head = heads[f"lin{level}.model.1.weight"]
        total += F.conv2d((unit_a - unit_b).square(), head).mean((1, 2, 3))
    return total


def test_vgg_distance_is_lpips(weights: tuple[Path, Path]) -> None:
    distance = VGGPerceptual(*weights)
    first, second = torch.rand(2, 3, 32, 48, requires_grad=True), torch.rand(2, 3, 32, 48)
    found = distance(first, second)
    expected = lpips(first, second, weights)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    found.sum().backward()
    (gradient,) = torch.autograd.grad(expected.sum(), first)
    torch.testing.assert_close(first.grad, gradient, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in distance.parameters())


def test_weights_that_are_missing_damaged_or_anothers_are_named(weights: tuple[Path, Path], tmp_path: Path) -> None:
    vgg, heads = weights
    with pytest.raises(PackError, match=r"absent\.pth is missing"):
        VGGPerceptual(tmp_path / "absent.pth", heads)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(vgg.read_bytes()[:1000])
    with pytest.raises(PackError, match=r"damaged\.pth cannot be read"):
        VGGPerceptual(damaged, heads)
    with pytest.raises(PackError, match=r"vgg16\.pth lacks lin0"):
        VGGPerceptual(vgg, vgg)
    short = tmp_path / "short.safetensors"
    save_file({"0.weight": torch.zeros(2, 3, 3, 3)}, short)
    with pytest.raises(PackError, match=r"short\.safetensors lacks 0\.weight of shape \(64, 3, 3, 3\)"):
        VGGPerceptual(short, heads)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(weights: tuple[Path, Path], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"0.weight": Payload(trace)}, tmp_path / "evil.pth")
    with pytest.raises(PackError, match=r"evil\.pth cannot be read"):
        VGGPerceptual(tmp_path / "evil.pth", weights[1])
    assert not trace.exists()
