"""The perceptual distance that a recipe asks for: by VGG-LPIPS if it names the files, otherwise by the CLIP."""

from typing import Protocol

from codebrush.models.clip import CLIP
from codebrush.models.perceptual import CLIPPerceptual, Perceptual, VGGPerceptual
from codebrush.training.stage import Materials


class PerceptualRecipe(Protocol):
    """The settings of the distance: its weight, and the files of VGG-LPIPS."""

    @property
    def perceptual(self) -> float: ...
    @property
    def vgg(self) -> str: ...
    @property
    def vgg_heads(self) -> str: ...


def perceptual_distance(recipe: PerceptualRecipe, materials: Materials) -> Perceptual | None:
    """The distance of two batches of images in [0, 1]; None where the recipe gives it no weight."""
    if not recipe.perceptual:
        return None
    if recipe.vgg:
        return VGGPerceptual(recipe.vgg, recipe.vgg_heads)
    return CLIPPerceptual(materials.need(CLIP))
