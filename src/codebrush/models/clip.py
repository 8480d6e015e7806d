"""CLIP: an image encoder and a text encoder with one space of unit vectors (Radford et al. 2021)."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.encoders.image_encoder import ImageEncoderConfig, make_image_encoder
from codebrush.models.encoders.text_encoder import TextEncoderConfig, make_text_encoder
from codebrush.models.precision import fast_inference
from codebrush.models.pretrained import PretrainedModel, stored_as

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = 100.0  # section 2.5: the largest scale that training allows


@dataclass(frozen=True)
class CLIPConfig:
    """The two encoders, and how pictures are prepared for the image encoder.

    Pixels in [0, 1] are normalised by `image_mean` and `image_std`, one number a channel. `resize_mode` says how
    pictures of any shape are resized: "plain" lays transparency over white and cuts out the middle, "crop" cuts out the
    middle as OpenAI's code does, "squeeze" distorts the whole picture as SigLIP's does; see
    `codebrush.data.preprocess`.
    """

    image: ImageEncoderConfig
    text: TextEncoderConfig
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD
    resize_mode: Literal["plain", "crop", "squeeze"] = field(default="plain", metadata=stored_as("fit"))


class CLIPOutput(NamedTuple):
    """Embeddings of a batch, and what turns their cosines into logits: logit_scale * cosine + logit_bias."""

    image: Tensor  # (B, E), unit vectors
    text: Tensor  # (B', E), unit vectors
    logit_scale: Tensor  # scalar, larger than 0
    logit_bias: Tensor  # scalar, 0 but for the sigmoid loss (Zhai et al. 2023, "SigLIP", section 3.2)


class CLIP(PretrainedModel):
    """Pictures and texts in one space: the cosine of their unit vectors says how well they fit.

    Where no gradient is asked for, large encoders embed in bfloat16 if that is faster. With `precision` "float32" they
    do not, with "int8" they multiply in 8 bits on an x86 processor; see `fast_inference`.
    """

    precision: Literal["auto", "float32", "int8"] = "auto"
    config_class = CLIPConfig
    tables = frozenset({"text_encoder.token_embedding.weight"})
    compact = r"image_encoder\.(pool\.\w+|stages\.[23]\..*conv\d?)\.weight"  # most of a small ResNet
    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor

    def __init__(self, config: CLIPConfig, image_encoder: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.config = config
        self.image_encoder: Any = image_encoder
        self.text_encoder: Any = text_encoder
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, config: CLIPConfig) -> "CLIP":
        """A freshly initialised CLIP of the sizes in `config`."""
        return cls(config, make_image_encoder(config.image), make_text_encoder(config.text))

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the image encoder reads."""
        return self.config.image.image_shape

    @property
    def image_size(self) -> int:
        """Side in pixels of the square pictures that the image encoder reads.

        Raises:
            PackError: if it reads pictures that are not square, which training and drawing cannot work with.
        """
        height, width = self.image_shape
        if height != width:
            raise PackError(
                f"this CLIP reads pictures of {height} x {width} pixels (height x width): use a CLIP that reads "
                "square ones for training and drawing"
            )
        return height

    @property
    def embed_dim(self) -> int:
        """E, the width of the shared space."""
        return self.config.image.embed_dim

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> normalised pixels for the image encoder, of its own height and width.

        Images of another size are resized, and so distorted if they have another shape. The gradient flows through.
        """
        if images.shape[-2:] != self.image_shape:
            images = F.interpolate(images, self.image_shape, mode="bicubic", antialias=True).clamp(0, 1)
        return (images - self.mean) / self.std

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> unit vectors (B, E) float32."""
        pixels = self.normalise(images)
        with fast_inference(self.image_encoder, self.precision, len(pixels)) as encoder:
            return F.normalize(encoder(pixels).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> unit vectors (B, E) float32."""
        with fast_inference(self.text_encoder, self.precision, len(tokens)) as encoder:
            return F.normalize(encoder(tokens).float(), dim=-1)

    def forward(self, images: Tensor, tokens: Tensor) -> CLIPOutput:
        """Images (B, 3, H, W) in [0, 1] and tokens (B', T) int64 -> their unit vectors, and the scale of the logits.

        The scale is the learned one, without a limit: training keeps it to `MAX_LOGIT_SCALE` by clamping `log_scale`,
        while the published SigLIPs learned 117.
        """
        scale = self.log_scale.exp()
        return CLIPOutput(self.encode_image(images), self.encode_text(tokens), scale, self.logit_bias)
