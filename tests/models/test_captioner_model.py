import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from codebrush.models.captioner import Captioner, CaptionerConfig, patch_feature_shape, patch_features, segment_mask
from codebrush.models.encoders.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from codebrush.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig

K, P, F, T = 20, 6, 5, 9
CONFIG = CaptionerConfig(K, T, width=16, layers=2, heads=2, patches=P, feature_width=F, levels=(0,))


def network(**changes: Any) -> Captioner:
    torch.manual_seed(0)
    model = Captioner(CaptionerConfig(**{**vars(CONFIG), **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def features(batch: int) -> Tensor:
    return torch.randn(batch, P, F, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, K, shape, generator=torch.Generator().manual_seed(2))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [[9], [4, 1, 1, 3], [1] * 9])
def test_with_a_cache_the_logits_are_the_same(chunks: list[int]) -> None:
    model, seen, row = network(), features(2), tokens(2, T)
    with torch.no_grad():
        whole = model(seen, row).logits
        logits, cache = model.prefill(seen, row[:, : chunks[0]])
        start, parts = chunks[0], [logits]
        for count in chunks[1:]:
            parts.append(model.step(row[:, start : start + count], cache))
            start += count
    close(torch.cat(parts, dim=1), whole)


def test_rows_about_one_picture_do_not_see_each_other() -> None:
    model, seen, rows = network(), features(2), tokens(2, 3, T)
    with torch.no_grad():
        together = model(seen, rows).logits
        apart = torch.stack([model(seen, rows[:, segment]).logits for segment in range(3)], dim=1)
    close(together, apart)


def test_logits_of_some_tokens_alone() -> None:
    model, seen, rows = network(), features(2), tokens(2, 3, T)
    wanted = torch.rand(2, 3, T) < 0.3
    with torch.no_grad():
        close(model(seen, rows, wanted=wanted).logits, model(seen, rows).logits[wanted])


def test_tokens_see_those_before_them_and_patches_see_no_tokens() -> None:
    mask = segment_mask(2, 2, 2, torch.device("cpu"))[0]
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def test_the_picture_matters_and_so_does_each_patch() -> None:
    model, seen, row = network(), features(1), tokens(1, T)
    with torch.no_grad():
        whole = model(seen, row).logits
        for patch in range(P):
            changed = seen.clone()
            changed[:, patch] = torch.randn(F)  # no mere scale: features are normalised
            assert (model(changed, row).logits - whole).abs().max() > 1e-3


def test_a_captioner_comes_back_exactly_and_nearly_in_8_bits(tmp_path: Any) -> None:
    model, seen, row = network(), features(2), tokens(2, T)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "small", torch.float16)
    with torch.no_grad():
        expected = model(seen, row).logits
        assert torch.equal(Captioner.from_pretrained(tmp_path / "whole")(seen, row).logits, expected)
        small = Captioner.from_pretrained(tmp_path / "small")
        assert small.token_embedding.weight.dtype == torch.float32
        off = (small(seen, row).logits - expected).norm() / expected.norm()
    assert 0 < off < 0.02
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.45 * sizes[0]


def test_files_keep_the_names_that_packs_have(tmp_path: Path) -> None:
    model = network(patch_labels=5)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["sights"], "patch_labels" in config) == (5, False)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() ^ model.state_dict().keys() == {
        f"{name}.{part}" for name in ("sights", "patch_labels") for part in ("weight", "bias")
    }
    again = Captioner.from_pretrained(tmp_path)
    assert again.config == model.config
    for state in (stored, again.state_dict()):
        fresh = network(patch_labels=5)
        torch.nn.init.zeros_(fresh.patch_labels.weight)
        fresh.load_state_dict(state)
        assert torch.equal(fresh.patch_labels.weight, model.patch_labels.weight)


def test_patch_features_lay_coarse_grids_over_the_finest() -> None:
    encoder = ModifiedResNet(ModifiedResNetConfig(64, 4, (1, 1, 1, 1), 2, 8)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = encoder.features(pixels)
        found = patch_features(encoder, pixels, (1, 2))
    assert found.shape == (2, 64, maps[1].shape[1] + maps[2].shape[1])
    assert patch_feature_shape(encoder.config, (1, 2)) == found.shape[1:]
    assert patch_feature_shape(encoder.config, (-1,)) == (4, maps[3].shape[1])
    close(found[0, 8 * 3 + 5, : maps[1].shape[1]], maps[1][0, :, 3, 5])
    close(found[0, 8 * 3 + 5, maps[1].shape[1] :], maps[2][0, :, 1, 2])


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_patch_features_of_a_vision_transformer_leave_out_the_class_token(pooling: Any) -> None:
    encoder = VisionTransformer(VisionTransformerConfig(32, 8, 16, 3, 2, 8, pooling)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = patch_features(encoder, pixels, (0, 2))
        maps = encoder.features(pixels)
    assert patch_feature_shape(encoder.config, (0, 2)) == found.shape[1:] == (16, 32)
    close(found[:, 0, :16], maps[0][:, int(pooling == "class")])


def test_the_stem_adds_what_features_lack() -> None:
    model, row = network(patches=16, image_size=32, stem=8, patch_labels=5), tokens(2, T)
    seen, pixels = torch.randn(2, 16, F), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert model.config.halvings == 3
    with torch.no_grad():
        output = model(seen, row, pixels=pixels)
        close(model(model.with_stem(seen, pixels), row).logits, output.logits)
        changed = pixels.clone()
        changed[:, :, 24:, 24:] += 1
        other = model(seen, row, pixels=changed)
    assert output.patch_labels is not None
    assert output.patch_labels.shape == (2, 16, 5)
    assert model(seen, None, pixels=pixels).patch_labels.shape == (2, 16, 5)
    assert (other.logits - output.logits).abs().max() > 1e-3
    assert model(model.with_stem(seen, pixels), row).patch_labels is None


def test_places_of_named_things_are_predicted_half_way() -> None:
    model, seen, rows = network(layers=3, places=4), features(2), tokens(2, 3, T)
    named = torch.zeros(2, 3, T, dtype=torch.bool)
    named[0, 1, 4] = named[1, 2, 0] = True
    with torch.no_grad():
        plain, asked = model(seen, rows), model(seen, rows, named=named)
        close(asked.logits, plain.logits)
        assert plain.places is None
        assert model.places is not None
        mask = segment_mask(P, 3, T, rows.device)
        x = (model.token_embedding(rows) + model.token_positions).flatten(1, 2)
        x = torch.cat([model.prefix(seen), x], dim=1)
        half = model.transformer.blocks[1](model.transformer.blocks[0](x, mask=mask), mask=mask)[:, P:]
        words = half.unflatten(1, (3, T))
        close(asked.places[0], model.places(words[0, 1, 4]).view(2, 4))
        close(asked.places[1], model.places(words[1, 2, 0]).view(2, 4))
    assert network(layers=3)(seen, rows, named=named).places is None
