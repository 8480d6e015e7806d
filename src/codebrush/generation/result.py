"""What drawing gives: a picture with what it came from."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """One picture with what it came from; the manifest says how to draw it again."""

    image: Image.Image
    score: float  # CLIP's cosine with the prompt, -1 to 1
    codes: Tensor  # (h, w) int64
    latent: Tensor  # (d, h, w), as it was decoded
    manifest: dict[str, Any]
