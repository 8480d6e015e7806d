"""Large networks compute in bfloat16 without gradients, where that is faster, and stay near float32."""

import copy

import pytest
import torch
import torch.nn.functional as F

from codebrush.models import precision
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.packed_linear import PackedLinear, can_pack
from codebrush.models.precision import fast_inference, has_bf16

fast = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="bfloat16 is not faster on this processor")
LEAST_COSINE = 0.9995


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    image = VisionTransformerConfig(32, 8, 128, 6, 4, 64, activation="quick_gelu")
    text = TextTransformerConfig(vocab_size=99, context_length=16, width=128, layers=6, heads=4, embed_dim=64)
    return CLIP.from_config(CLIPConfig(image, text)).eval().requires_grad_(False)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network counts as a large one."""
    monkeypatch.setattr(precision, "LARGE", 0)


def embeddings(clip: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(1, 99, (3, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return clip.encode_image(images), clip.encode_text(tokens)


@fast
@pytest.mark.usefixtures("large")
def test_a_large_clip_embeds_in_bfloat16_near_float32(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = embeddings(clip)
    monkeypatch.setattr(clip, "precision", "float32")
    for found, wanted in zip(quick, embeddings(clip), strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, wanted)
        assert F.cosine_similarity(found, wanted).min() > LEAST_COSINE
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


@fast
def test_small_networks_and_gradients_stay_in_float32(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = embeddings(clip)
    monkeypatch.setattr(precision, "LARGE", 0)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.testing.assert_close(clip.encode_image(images).detach(), usual[0], rtol=0, atol=1e-5)
    monkeypatch.setattr(precision, "LARGE", 10**9)
    assert all(torch.equal(*pair) for pair in zip(embeddings(clip), usual, strict=True))


@pytest.mark.usefixtures("large")
def test_a_context_around_it_stays_as_it_is(clip: CLIP) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), fast_inference(clip, "float32", 1) as network:
        assert torch.is_autocast_enabled("cpu")
        assert network is clip


@fast
@pytest.mark.usefixtures("large")
def test_a_packed_copy_gives_the_same_bits_and_follows_the_weights(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    own = copy.deepcopy(clip)
    plain = embeddings(own)
    monkeypatch.setattr(precision, "MANY", 3)

    def packed_layers() -> int:
        with torch.no_grad(), fast_inference(own.image_encoder, "auto", 3) as network:
            return sum(isinstance(part, PackedLinear) for part in network.modules())

    assert packed_layers() == 0  # at the first batch
    assert packed_layers() > 20
    for found, wanted in zip(embeddings(own), plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with torch.no_grad():
        for weight in own.image_encoder.parameters():
            weight.mul_(1.5)
    assert packed_layers() == 0
    changed = embeddings(own)[0]
    assert F.cosine_similarity(changed, plain[0]).max() < LEAST_COSINE
    assert packed_layers() > 20
    torch.testing.assert_close(embeddings(own)[0], changed, rtol=0, atol=1e-6)


@fast
@pytest.mark.usefixtures("large")
def test_weights_that_are_trained_are_not_packed(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MANY", 1)
    own = copy.deepcopy(clip).requires_grad_()
    for _ in range(3):
        with torch.no_grad(), fast_inference(own.image_encoder, "auto", 3) as network:
            assert network is own.image_encoder


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no such products")
def test_eight_bits_stay_near_float32(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = embeddings(clip)
    monkeypatch.setattr(clip, "precision", "int8")
    for found, wanted in zip(embeddings(clip), plain, strict=True):
        assert not torch.equal(found, wanted)
        assert F.cosine_similarity(found, wanted).min() > 0.998
