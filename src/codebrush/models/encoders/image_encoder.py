"""CLIP's image encoders: `VisionTransformer` and `ModifiedResNet`, made by the class of their config.

Both turn normalised pixels (B, 3, H, W) into one vector a picture (B, E), projected and not of unit length, and with
`features` into the output of each block or stage.
"""

from codebrush.models.encoders.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from codebrush.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig

ImageEncoderConfig = VisionTransformerConfig | ModifiedResNetConfig


def make_image_encoder(config: ImageEncoderConfig) -> VisionTransformer | ModifiedResNet:
    """A freshly initialised image encoder of the kind and sizes of `config`."""
    return VisionTransformer(config) if isinstance(config, VisionTransformerConfig) else ModifiedResNet(config)
