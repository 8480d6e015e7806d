"""`Result`: a picture that was made, with its score, its codes and the manifest that says how to make it again."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Result:
    """A finished picture. `manifest` says how to make it again; `codebrush.generation.manifest` lists its keys."""

    image: Image.Image
    score: float  # CLIP's cosine with the prompt, -1 to 1
    codes: Tensor  # (h, w) int64
    latent: Tensor  # (d, h, w), as it was decoded
    manifest: dict[str, Any]
