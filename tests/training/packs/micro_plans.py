"""Plans of micro members, and a request with them, for the tests of whole packs."""

from pathlib import Path
from typing import Any

from codebrush.training.dataset import SourceConfig
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.packs.request import PackRequest
from codebrush.training.stage import StagePlan
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe

BUDGET, STEP_SECONDS = 40.0, 0.4  # so that each stage has enough steps
LOOP = LoopConfig(steps=4, batch_size=4, threads=1, preview_every=4)
PLANS = {
    "clip": StagePlan(
        "clip",
        CLIPRecipe(
            image_size=16, patch_size=4, width=16, layers=1, heads=2, text_width=16, text_layers=1, text_heads=2,
            embed_dim=8, token_table=False,
        ),
        LOOP,
    ),
    "vqgan": StagePlan(
        "vqgan",
        VQGANRecipe(
            image_size=16, channels=8, channel_multipliers=(1, 2), norm_groups=4, latent_channels=8, code_dim=4,
            codebook_size=32, discriminator_channels=8, discriminator_layers=1,
        ),
        LOOP,
    ),
    "transformer": StagePlan("transformer", TransformerRecipe(width=16, layers=1, heads=2, text_length=6), LOOP),
}  # fmt: skip


def request(shapes: Path, out: Path, **changes: Any) -> PackRequest:
    given = {"source": SourceConfig(str(shapes)), "plans": PLANS, "tokenizer": "bpe", "image_size": 16, "threads": 1}
    given["keep_work"] = True
    return PackRequest(out=out, **{**given, **changes})
