"""Trains a VQGAN with pixel, perceptual and adversarial losses; the discriminator joins in late."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from codebrush.data.contact_sheet import contact_sheet
from codebrush.data.decoding.images import to_pil
from codebrush.data.structural_similarity import structural_similarity, torchmetrics_ssim
from codebrush.errors import TrainingError
from codebrush.models.quantizers.vector_quantizer import VectorQuantizer
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.pack.members import MEMBERS
from codebrush.training.dataset import Captioned
from codebrush.training.engine.sharding import is_sharded
from codebrush.training.engine.task import Objective
from codebrush.training.field_types import Count, Rate, Share, Weight
from codebrush.training.guards import Fault, Guard, lasts, looked_at
from codebrush.training.stage import GRID, Materials, ModelSize, Stage, StagePlan, halvings
from codebrush.training.streamed import Streamed
from codebrush.training.tasks.augmentation import Augmentation, draw_affine, move
from codebrush.training.tasks.gan import DISCRIMINATOR, adversary_fault, discriminator_objective, with_discriminator
from codebrush.training.tasks.perceptual import perceptual_distance
from codebrush.training.tasks.psnr import psnr
from codebrush.warned import warn

PREVIEWED = 16
FEW_CODES = 1 / 64  # of the codes, or of the places in the pictures looked at: a codebook that has collapsed
SPLIT = 0.15  # distance of a new code from the one it is split from, as a share of that one's length


@dataclass(frozen=True)
class VQGANRecipe:
    """Sizes and settings of a VQGAN and its training.

    `l1`, `l2`, `ssim` (one minus the structural similarity, Zhao et al. 2017), `perceptual` and `adversarial` are the
    weights of the losses; a term of weight 0 is left out. `adversarial_from` is the share of the run after which the
    discriminator joins in; 1 leaves it out. `vgg` and `vgg_heads` name the files of VGG-LPIPS, which then measures the
    perceptual distance instead of the given CLIP. `decoder_only` does not train encoder and codebook, so that every
    picture keeps its codes. A VQGAN that training starts from keeps its own sizes, but with `grow` it is made for
    pictures of `image_size` and gets `codebook_size` codes (see `grow_vqgan`).
    """

    image_size: Count = 64
    channels: Count = 32
    channel_multipliers: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 2, 4)
    res_blocks: Count = 1
    attention_resolutions: tuple[Count, ...] = ()
    norm_groups: Count = 8
    latent_channels: Count = 64
    code_dim: Count = 8
    codebook_size: Count = 1024
    l1: Weight = 1.0
    l2: Weight = 1.0
    ssim: Weight = 0.0
    perceptual: Weight = 0.1
    adversarial: Weight = 0.1
    adversarial_from: Share = 0.5
    discriminator_channels: Count = 32
    discriminator_layers: Count = 2
    learning_rate: Rate = 1e-3
    discriminator_rate: Rate = 2e-4
    weight_decay: Weight = 0.0
    decoder_only: bool = False
    grow: bool = False
    vgg: str = ""
    vgg_heads: str = ""
    augmentation: Augmentation = Augmentation(shift=0.03, zoom=0.05, mirror=0.5)


def make_vqgan(recipe: VQGANRecipe) -> VQGAN:
    """A fresh VQGAN of the recipe's sizes."""
    r = recipe
    return VQGAN(
        VQGANConfig(
            image_size=r.image_size,
            channels=r.channels,
            channel_multipliers=r.channel_multipliers,
            res_blocks=r.res_blocks,
            attention_resolutions=r.attention_resolutions,
            middle_attention=bool(r.attention_resolutions),
            norm_groups=r.norm_groups,
            latent_channels=r.latent_channels,
            code_dim=r.code_dim,
            codebook_size=r.codebook_size,
        )
    )


def grow_vqgan(vqgan: VQGAN, recipe: VQGANRecipe) -> VQGAN:
    """`vqgan` for pictures and with as many codes as a recipe with `grow` asks for; without `grow`, `vqgan` itself.

    The most used codes are split into two that lie close together (Linde, Buzo and Gray 1980); training moves them
    apart.

    Raises:
        TrainingError: if a Gumbel quantiser should get more codes.
    """
    old = vqgan.config
    more = recipe.codebook_size - old.codebook_size
    wanted = replace(old, image_size=recipe.image_size, codebook_size=max(old.codebook_size, recipe.codebook_size))
    if wanted == old or not recipe.grow:
        return vqgan
    if more > 0 and old.quantizer != "vector":
        raise TrainingError("recipe.codebook_size: the codes of a Gumbel quantiser cannot be split")
    made, state = VQGAN(wanted), vqgan.state_dict()
    if more > 0:
        order = state["quantizer.share"].argsort(descending=True)
        parents = order.repeat(-(-more // len(order)))[:more]
        for name in ("codebook", "share", "sums"):
            part = state.get(f"quantizer.{name}")
            if part is not None:
                state[f"quantizer.{name}"] = torch.cat([part, part[parents]])
        new = state["quantizer.codebook"][old.codebook_size :]
        new += SPLIT * new.norm(dim=1, keepdim=True) * F.normalize(torch.randn_like(new), dim=1)
        warn(f"the codebook grows from {old.codebook_size} to {recipe.codebook_size} codes")
    made.load_state_dict(state)
    return made


class VQGANTask:
    """Trains the autoencoder and, once it joins in, the discriminator in turn (Esser et al. 2021, eq. 4 to 7).

    `perceptual` maps two batches of images in [0, 1] to their distance; None leaves that term out.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        recipe: VQGANRecipe,
        data: Captioned | Streamed,
        steps: int,
        perceptual: nn.Module | None = None,
    ):
        self.recipe, self.data, self.vqgan, self.perceptual = recipe, data, vqgan, perceptual
        if recipe.ssim:
            torchmetrics_ssim()  # if torchmetrics is missing, the run should not begin
        self.examples = len(data)
        self.frozen: list[nn.Module] = [] if perceptual is None else [perceptual]
        if recipe.decoder_only:
            for part in (vqgan.encoder, vqgan.quant_conv, vqgan.quantizer):
                part.requires_grad_(False)
        self.adversary, self.networks, self.optimizers = with_discriminator("vqgan", vqgan, recipe, steps)
        self.shown = data.images(data.sample(PREVIEWED))

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Pictures uint8 (B, 3, S, S) and how to move each, (B, 2, 3)."""
        return {
            "images": self.data.images(rows),
            "affine": draw_affine(len(rows), self.recipe.augmentation, rng),
        }

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """The autoencoder's loss, then the discriminator's on the same reconstruction."""
        r = self.recipe
        images = move(batch["images"].float() / 255, batch["affine"])
        if r.decoder_only:
            self.vqgan.quantizer.eval()  # codes are not updated
        output = self.networks["vqgan"](images)
        made = output.images.float()
        error = F.mse_loss(made, images)  # before the L1 loss: the order decides how gradients are rounded
        loss = r.l1 * F.l1_loss(made, images) + r.l2 * error
        metrics = {"psnr": psnr(made, images), "code_distance": output.distance}
        if self.perceptual is not None:
            distance = self.perceptual(made, images).mean()
            loss = loss + r.perceptual * distance
            metrics["perceptual"] = distance
        if r.ssim:
            alike = structural_similarity(made, images).mean()
            loss, metrics["ssim"] = loss + r.ssim * (1 - alike), alike
        adversary = self.adversary and self.adversary.at(step)
        if adversary is not None:
            loss, figures = adversary.add_generator_loss(loss, made, self.vqgan.last_layer)
            metrics |= figures
        yield Objective("vqgan", loss + output.codebook_loss.float(), metrics)
        if adversary is not None:
            yield discriminator_objective(self.networks[DISCRIMINATOR], images, made)

    @torch.no_grad()
    def preview(self, network: nn.Module) -> Image.Image:
        """Some pictures, with their reconstructions below each row."""
        images = self.shown.float() / 255
        device = next(network.parameters()).device
        made = network(images.to(device)).images.cpu()
        half = len(images) // 2
        rows = (images[:half], made[:half], images[half:], made[half:])
        return contact_sheet([to_pil(image) for row in rows for image in row], columns=max(1, half))


def vqgan_guard(task: VQGANTask, rows: np.ndarray) -> Guard:
    """Looks at reconstructions of `rows` and at the codes that they use."""
    quantizer = task.vqgan.quantizer

    @torch.no_grad()
    def measure(network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        images = task.data.images(rows).to(device).float() / 255
        parts = images.split(PREVIEWED)
        made = torch.cat([network(part).images.float() for part in parts])
        whole = network if any(map(is_sharded, task.vqgan.parameters())) else task.vqgan
        assert isinstance(whole, VQGAN)
        codes = torch.cat([whole.quantize(whole.encode(part))[1] for part in parts])
        return {"looked_at_psnr": float(psnr(made, images)), "codes_used": float(len(codes.unique()))}

    faults = [] if task.adversary is None else [adversary_fault(task.adversary, "vqgan")]
    if not task.recipe.decoder_only:
        line = "few codes are used, the codebook has collapsed: lower recipe.learning_rate, or recipe.codebook_size"
        cure = quantizer.refill if isinstance(quantizer, VectorQuantizer) else None
        places = len(rows) * math.prod(task.vqgan.code_grid(task.shown.shape[-1]))
        few = max(2, FEW_CODES * min(len(quantizer.vectors), places))
        shows = partial(lasts, name="codes_used", wrong=lambda count: count <= few)
        faults.append(Fault("codebook", shows, line, cure, "all codes are made anew by k-means"))
    return Guard(measure, faults)


class VQGANStage(Stage):
    """Trains the VQGAN of a pack."""

    member = MEMBERS["vqgan"]
    recipe = VQGANRecipe
    optional = False
    share = 0.33
    streams = True
    start_rate = 1.0
    served_first = True  # a grey tokenizer makes everything after it grey
    sets_image_size = True

    def make(self, plan: StagePlan, materials: Materials) -> VQGAN:
        """A fresh VQGAN of the recipe's sizes."""
        return make_vqgan(plan.recipe)

    def grow(self, start: VQGAN, plan: StagePlan, materials: Materials) -> VQGAN:
        """`start`, made for larger pictures and with more codes if the recipe says `grow`."""
        return grow_vqgan(start, plan.recipe)

    def task(self, network: VQGAN, plan: StagePlan, materials: Materials) -> VQGANTask:
        """The training of a VQGAN, with the perceptual distance that the recipe names."""
        distance = perceptual_distance(plan.recipe, materials)
        return VQGANTask(network, plan.recipe, materials.data, plan.loop.steps, distance)

    def guard(self, plan: StagePlan, materials: Materials, task: VQGANTask) -> Guard:
        """Whether few codes are used, and whether the discriminator makes pictures worse."""
        return vqgan_guard(task, looked_at(task.examples, plan.loop.held_out))

    def unfit(self, start: VQGANConfig, image_size: int) -> str:
        """Why a VQGAN with this config makes too few codes of a picture; "" if there are enough."""
        few = image_size < GRID * start.factor
        return f"has {start.factor} pixels a code, too many for pictures of {image_size}" if few else ""

    def adapt(self, recipe: VQGANRecipe, materials: Materials, start: VQGAN | None, wordpiece: bool) -> VQGANRecipe:
        """The recipe without a discriminator if training begins from a network, whose decoder has had one."""
        return recipe if start is None else replace(recipe, adversarial=0.0, l2=4.0)

    def sizes(self, image_size: int) -> Sequence[ModelSize]:
        """Three sizes, with up to 8 pixels a code."""
        levels = halvings(image_size)
        return [
            ModelSize("small", _sized_recipe(image_size, levels, 16, 256, (1, 2, 2, 4)), 16, 10_000),
            ModelSize("medium", _sized_recipe(image_size, levels, 32, 1024, (1, 2, 2, 4)), 32, 60_000),
            ModelSize("large", _sized_recipe(image_size, levels, 64, 4096, (1, 2, 4, 4)), 32, 600_000),
        ]


def _sized_recipe(
    image_size: int, levels: int, channels: int, codebook_size: int, multipliers: tuple[int, ...]
) -> VQGANRecipe:
    return VQGANRecipe(
        image_size=image_size,
        channels=channels,
        channel_multipliers=multipliers[-(levels + 1) :],
        latent_channels=2 * channels,
        codebook_size=codebook_size,
    )


STAGE = VQGANStage()
