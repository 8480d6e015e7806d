"""The learning rates of the layers of a CLIP."""

from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.bag_of_words import BagOfWordsConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.training.engine.optimizer import make_adamw
from codebrush.training.tasks.layer_decay import layer_decay


def rates(clip: CLIP, decay: float) -> dict[str, float]:
    """The learning rate of every parameter by name."""
    names = {parameter: name for name, parameter in clip.named_parameters()}
    groups = make_adamw([clip], 0.8, weight_decay=0.1, rate_factor=layer_decay(decay)).param_groups
    found = [(names[each], group["lr"]) for group in groups for each in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def rate_of(found: dict[str, float], prefix: str) -> float:
    """The one rate that all parameters of a layer have."""
    (rate,) = {rate for name, rate in found.items() if name.startswith(prefix)}
    return rate


def test_the_rate_falls_by_a_factor_for_every_layer_from_the_output():
    image = VisionTransformerConfig(16, 8, 8, 3, 2, 4)
    found = rates(CLIP.from_config(CLIPConfig(image, TextTransformerConfig(20, 8, 8, 2, 2, 4, token_width=6))), 0.5)
    assert [rate_of(found, f"image_encoder.transformer.blocks.{index}.") for index in range(3)] == [0.1, 0.2, 0.4]
    for first in ("patch_embedding", "class_embedding", "position_embedding", "input_norm"):
        assert rate_of(found, f"image_encoder.{first}") == 0.05
    for last in ("final_norm", "projection"):
        assert rate_of(found, f"image_encoder.{last}") == rate_of(found, f"text_encoder.{last}") == 0.8
    assert [rate_of(found, f"text_encoder.transformer.blocks.{index}.") for index in range(2)] == [0.2, 0.4]
    for first in ("token_embedding", "token_projection", "position_embedding"):
        assert rate_of(found, f"text_encoder.{first}") == 0.1
    assert found["log_scale"] == found["logit_bias"] == 0.8


def test_stages_of_a_resnet_and_a_bag_of_words_are_layers():
    clip = CLIP.from_config(CLIPConfig(ModifiedResNetConfig(32, 4, (1, 2, 1, 1), 4, 4), BagOfWordsConfig(20, 8, 6, 4)))
    found = rates(clip, 0.5)
    assert rate_of(found, "image_encoder.stem") == 0.025
    stages = [rate_of(found, f"image_encoder.stages.{index}.") for index in range(4)]
    assert stages == [0.05, 0.1, 0.2, 0.4]
    assert rate_of(found, "image_encoder.pool") == 0.8
    assert [found["text_encoder.token_embedding.weight"], rate_of(found, "text_encoder.projection")] == [0.4, 0.8]


def test_layers_keep_what_decays_apart():
    clip = CLIP.from_config(CLIPConfig(ModifiedResNetConfig(32, 4, (1, 1, 1, 1), 4, 4), BagOfWordsConfig(20, 8, 6, 4)))
    names = {parameter: name for name, parameter in clip.named_parameters()}
    decays = [
        {names[each]: group["weight_decay"]
         for group in make_adamw([clip], 1e-3, 0.1, rate_factor=layer_decay(decay)).param_groups
         for each in group["params"]}
        for decay in (1.0, 0.7)
    ]  # fmt: skip
    assert decays[0] == decays[1]
    assert set(decays[0].values()) == {0.0, 0.1}
