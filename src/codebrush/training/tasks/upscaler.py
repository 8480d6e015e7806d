"""Trains an upscaler: large pictures are made small, and the network learns to restore them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import to_pil
from codebrush.errors import TrainingError
from codebrush.models.upscaler import Upscaler, UpscalerConfig, enlarge, reduce
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import MEMBERS
from codebrush.training.dataset import Captioned, evenly
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight, Whole
from codebrush.training.guards import Guard, looked_at
from codebrush.training.stage import Materials, ModelSize, Stage, StagePlan, resized
from codebrush.training.streamed import Streamed
from codebrush.training.tasks.gan import DISCRIMINATOR, adversary_fault, discriminator_objective, with_discriminator
from codebrush.training.tasks.perceptual import perceptual_distance
from codebrush.training.tasks.psnr import psnr

PREVIEWED = 6
SAMPLED = 16  # pictures by which the usual size of a source's pictures is measured
LEAST_SIDE = 8  # small pictures are multiples of it, like those of packs trained within a budget
SMOOTH = 1e-3  # the pixel loss is quadratic for errors below it
DIHEDRAL = 8  # orientations of a square: four rotations, mirrored or not
RECONSTRUCTED = 0.25  # of the pictures that an upscaler within a budget learns from pass through the VQGAN first


@dataclass(frozen=True)
class UpscalerRecipe:
    """Sizes and settings. Pictures of `target_size` pixels are made `scale` times smaller; each step sees a crop of
    `crop` small pixels from each.

    The share `rounded` of the small pictures is rounded to 8 bits, like pictures in files; the share `reconstructed`
    passes through the given VQGAN, like pictures that a pack draws. `pixel`, `perceptual` and `adversarial` are the
    weights of the losses, the latter two left out at 0; `adversarial_from` is the share of the run after which the
    discriminator joins in. `vgg` and `vgg_heads` name the files of VGG-LPIPS, which then replaces the given CLIP.
    """

    scale: Literal[2, 4] = 2
    width: Count = 48
    blocks: Whole = 8
    target_size: Count = 128
    crop: Count = 32
    rounded: Share = 0.5
    reconstructed: Share = 0.0
    pixel: Rate = 1.0
    perceptual: Weight = 0.05
    adversarial: Weight = 0.02
    adversarial_from: Share = 0.6
    discriminator_channels: Count = 32
    discriminator_layers: Count = 2
    learning_rate: Rate = 1e-3
    discriminator_rate: Rate = 2e-4
    weight_decay: Weight = 0.0
    vgg: str = ""
    vgg_heads: str = ""

    def __post_init__(self) -> None:
        if self.target_size % self.scale:
            raise ValueError(f"target_size {self.target_size} is not a multiple of the scale {self.scale}")

    @property
    def small_size(self) -> int:
        """Side of the pictures to be enlarged, in pixels."""
        return self.target_size // self.scale


def make_upscaler(recipe: UpscalerRecipe) -> Upscaler:
    """A fresh upscaler of the recipe's sizes."""
    return Upscaler(UpscalerConfig(recipe.scale, recipe.width, recipe.blocks))


def fitting_target(data: Captioned, image_size: int, scale: int) -> int:
    """The side of the pictures to train on: `scale` times those that a pack draws, but no larger than the source's.

    Pictures enlarged beyond their size would teach blur.
    """
    numbers = evenly(len(data), SAMPLED)
    usual = int(np.median(data.sides(numbers)))
    step = scale * LEAST_SIDE
    return min(scale * image_size, max(step, usual)) // step * step


def charbonnier(made: Tensor, targets: Tensor) -> Tensor:
    """Charbonnier loss: the mean absolute error, smooth at 0 (Lai et al. 2017, section 3.2)."""
    return ((made - targets).square() + SMOOTH**2).sqrt().mean()


def reoriented(image: Tensor, way: int) -> Tensor:
    """A square picture (3, S, S) in one of its eight orientations, `way` 0 to 7."""
    image = torch.rot90(image, way % 4, (1, 2))
    return image.flip(2) if way >= DIHEDRAL // 2 else image


class UpscalerTask:
    """Generator and, once it starts, discriminator in turn; see `TrainingTask`.

    `perceptual` maps two batches of images in [0, 1] to their distance; None leaves that term out. `vqgan` reconstructs
    the share of small pictures that the recipe asks for.

    Raises:
        TrainingError: if the sizes of the start, the pictures, the recipe or the VQGAN do not fit together.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        recipe: UpscalerRecipe,
        data: Captioned | Streamed,
        steps: int,
        perceptual: nn.Module | None = None,
        vqgan: VQGAN | None = None,
    ):
        self.recipe, self.data, self.upscaler = recipe, data, upscaler
        self.perceptual, self.vqgan = perceptual, vqgan
        self.crop = min(recipe.crop, recipe.small_size)
        _check(upscaler, recipe, data, vqgan)
        self.examples = len(data)
        self.frozen: list[nn.Module] = [part for part in (perceptual, vqgan) if part is not None]
        self.adversary, self.networks, self.optimizers = with_discriminator("upscaler", upscaler, recipe, steps)
        self.shown = data.images(data.sample(PREVIEWED))

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Crops uint8 (B, 3, c, c) of the large pictures, and which of them are rounded when small (B,).

        Of the first R, which are reconstructed, also the whole pictures (R, 3, S, S) and the corners (R, 2) of their
        crops, in small pixels.
        """
        r, count = self.recipe, len(rows)
        reconstructed = round(r.reconstructed * count)
        ways = rng.integers(DIHEDRAL, size=count)
        ways[:reconstructed] = ways[:reconstructed] // 4 * 4  # VQGANs are trained on upright pictures
        corners = rng.integers(r.small_size - self.crop + 1, size=(count, 2))
        rounded = rng.random(count) < r.rounded
        whole = [reoriented(image, int(way)) for image, way in zip(self.data.images(rows), ways, strict=True)]
        side = r.scale * self.crop
        cut = [
            image[:, top : top + side, left : left + side]
            for image, (top, left) in zip(whole, (r.scale * corners).tolist(), strict=True)
        ]
        batch = {"images": torch.stack(cut), "rounded": torch.from_numpy(rounded)}
        if reconstructed:
            batch["whole"] = torch.stack(whole[:reconstructed])
            batch["corners"] = torch.from_numpy(corners[:reconstructed])
        return batch

    def pairs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The small pictures (B, 3, c, c) of a batch, and their targets (B, 3, scale c, scale c)."""
        targets = batch["images"].float() / 255
        small = reduce(targets, self.recipe.scale)
        if len(batch.get("whole", ())):  # a part of a batch may have none of its few
            made = self._reconstruct(reduce(batch["whole"].float() / 255, self.recipe.scale))
            for row, (top, left) in enumerate(batch["corners"].tolist()):
                small[row] = made[row, :, top : top + self.crop, left : left + self.crop]
        rounded = (small * 255).round() / 255
        return torch.where(batch["rounded"].view(-1, 1, 1, 1), rounded, small), targets

    @torch.no_grad()
    def _reconstruct(self, images: Tensor) -> Tensor:
        assert self.vqgan is not None
        quantised, _ = self.vqgan.quantize(self.vqgan.encode(images))
        return self.vqgan.decode(quantised).float().clamp(0, 1)

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The upscaler's loss, then the discriminator's on the same pictures."""
        r = self.recipe
        small, targets = self.pairs(batch)
        made = self.networks["upscaler"](small).float()
        loss = r.pixel * charbonnier(made, targets)
        reached, bicubic = psnr(made, targets), psnr(enlarge(small, r.scale), targets)
        metrics = {"psnr": reached, "gain": reached - bicubic}
        if self.perceptual is not None:
            distance = self.perceptual(made, targets).mean()
            loss = loss + r.perceptual * distance
            metrics["perceptual"] = distance
        adversary = self.adversary and self.adversary.at(step)
        if adversary is not None:
            loss, figures = adversary.add_generator_loss(loss, made, self.upscaler.last_layer)
            metrics |= figures
        yield Objective("upscaler", loss, metrics)
        if adversary is not None:
            yield discriminator_objective(self.networks[DISCRIMINATOR], targets, made)

    @torch.no_grad()
    def preview(self, network: nn.Module) -> Image.Image:
        """Some pictures in four rows: small, enlarged bicubically, enlarged by the network, original.

        If pictures are reconstructed, the second half of them, or a single one, passes through the VQGAN first.
        """
        true = self.shown.float() / 255
        small = reduce(true, self.recipe.scale)
        if self.vqgan is not None:
            drawn = small[len(small) // 2 :]
            drawn.copy_(self._reconstruct(drawn.to(next(self.vqgan.parameters()).device)))
        device = next(network.parameters()).device
        made = network(small.to(device)).float().cpu()
        plain = small.repeat_interleave(self.recipe.scale, -1).repeat_interleave(self.recipe.scale, -2)
        rows = (plain, enlarge(small, self.recipe.scale), made, true)
        return contact_sheet([to_pil(image) for row in rows for image in row], columns=len(true))


def _check(upscaler: Upscaler, recipe: UpscalerRecipe, data: Captioned | Streamed, vqgan: VQGAN | None) -> None:
    if upscaler.config.scale != recipe.scale:
        raise TrainingError(
            f"recipe.scale is {recipe.scale}, but the upscaler to start from has {upscaler.config.scale}"
        )
    size = data.size
    if size != recipe.target_size:
        raise TrainingError(f"the pictures are {size} pixels wide, but recipe.target_size is {recipe.target_size}")
    if vqgan is not None and recipe.small_size % vqgan.factor:
        raise TrainingError(
            f"recipe.target_size: small pictures of {recipe.small_size} pixels do not fit the VQGAN's {vqgan.factor} "
            "pixels a code"
        )


class UpscalerStage(Stage):
    """Trains the upscaler of a pack."""

    member = MEMBERS["upscaler"]
    recipe = UpscalerRecipe
    share = 0.05
    streams = True

    def make(self, plan: StagePlan, materials: Materials) -> Upscaler:
        """A fresh upscaler of the recipe's sizes."""
        return make_upscaler(plan.recipe)

    def task(self, network: Upscaler, plan: StagePlan, materials: Materials) -> UpscalerTask:
        """The training of an upscaler, with the perceptual distance that the recipe names, and the VQGAN if it asks
        for reconstructed pictures."""
        recipe = plan.recipe
        vqgan = materials.need(VQGAN) if recipe.reconstructed else None
        distance = perceptual_distance(recipe, materials)
        return UpscalerTask(network, recipe, materials.data, plan.loop.steps, distance, vqgan)

    def guard(self, plan: StagePlan, materials: Materials, task: UpscalerTask) -> Guard | None:
        """Whether the discriminator makes pictures worse."""
        if task.adversary is None:
            return None
        rows = looked_at(task.examples, plan.loop.held_out)

        @torch.no_grad()
        def measure(network: nn.Module) -> dict[str, float]:
            device = next(network.parameters()).device
            true = task.data.images(rows).to(device).float() / 255
            made = torch.cat([network(reduce(part, task.recipe.scale)).float() for part in true.split(PREVIEWED)])
            return {"looked_at_psnr": float(psnr(made, true))}

        return Guard(measure, [adversary_fault(task.adversary, "upscaler")])

    def prepare(self, plan: StagePlan, materials: Materials, cache: Path) -> Materials:
        """The materials with pictures of the size that enlarged pictures have."""
        return resized(plan, materials, cache)

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes, for pictures twice as large as those of the pack."""
        target = 2 * image_size
        return [
            ModelSize("small", UpscalerRecipe(width=32, blocks=4, target_size=target, learning_rate=2e-3), 8, 10_000),
            ModelSize("medium", UpscalerRecipe(target_size=target), 16, 100_000),
            ModelSize(
                "large", UpscalerRecipe(width=64, blocks=16, target_size=target, learning_rate=4e-4), 32, 1_000_000
            ),
        ]

    def adapt(
        self, recipe: UpscalerRecipe, materials: Materials, start: Upscaler | None, wordpiece: bool
    ) -> UpscalerRecipe:
        """The recipe with a target size that the pictures are large enough for; some are reconstructed if their size
        suits the VQGAN."""
        scale = recipe.scale if start is None else start.config.scale
        target = fitting_target(materials.stored, materials.image_size, scale)
        recipe = replace(recipe, scale=scale, target_size=target)
        fits = recipe.small_size % materials.need(VQGAN).factor == 0
        return replace(recipe, reconstructed=RECONSTRUCTED if fits else 0.0)


STAGE = UpscalerStage()
