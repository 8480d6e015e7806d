"""A CLIP, codes of captioned pictures -> a code transformer that writes codes from text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from codebrush.models.clip import CLIP
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.pack import text_condition
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.captioned import Captioned, CaptionTokens
from codebrush.training.loop import Objective
from codebrush.training.losses import code_loss
from codebrush.training.optimizer import make_adamw
from codebrush.training.ranges import Count, Rate, Share, Weight


@dataclass(frozen=True)
class TransformerRecipe:
    """Sizes and settings; `text_length` text tokens stand in the prefix.

    `code_noise` is the most that is made wrong of the codes that the network reads, while it still has to name the
    right ones: each picture's share is drawn between 0 and it. Without, a small collection is learned by heart code
    after code, the text is hardly read, and a drawing that leaves a known path never finds back.
    """

    width: Count = 256
    layers: Count = 8
    heads: Count = 4
    text_length: Count = 24
    dropout: Share = 0.1
    condition_dropout: Share = 0.1
    label_smoothing: Share = 0.0
    code_noise: Share = 0.0
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.05


def make_code_transformer(
    recipe: TransformerRecipe, clip: CLIP, codebook_size: int, grid: tuple[int, int]
) -> CodeTransformer:
    """A fresh network that reads the text features and the pooled embedding of `clip`."""
    return CodeTransformer(
        CodeTransformerConfig(
            codebook_size=codebook_size,
            grid=grid,
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.heads,
            text_features=clip.text_encoder.feature_width,
            text_length=min(recipe.text_length, clip.text_encoder.config.context_length),
            text_embedding=clip.embed_dim,
            condition_dropout=recipe.condition_dropout,
            dropout=recipe.dropout,
        )
    )


def spoil(codes: Tensor, noise: float, codebook_size: int) -> Tensor:
    """Codes (B, n) with random ones among them; the share of each row is drawn between 0 and `noise`."""
    if not noise:
        return codes
    share = torch.rand(len(codes), 1, device=codes.device) * noise
    wrong = torch.rand(codes.shape, device=codes.device) < share
    return torch.where(wrong, torch.randint_like(codes, codebook_size), codes)


class CodeTransformerTask:
    """Next-code prediction on stored codes; see `codebrush.training.loop.Task`."""

    def __init__(
        self,
        transformer: CodeTransformer,
        recipe: TransformerRecipe,
        clip: CLIP,
        data: Captioned,
        codes: np.ndarray,  # (N, h * w), any integer type
        tokenizer: Tokenizer,
        draw: Callable[[nn.Module], Image.Image | None] | None = None,
    ):
        self.recipe, self.clip, self.codes, self.draw = recipe, clip, codes, draw
        self.config = transformer.config
        self.tokens = CaptionTokens(data, tokenizer)
        self.examples = len(data)
        self.networks: dict[str, nn.Module] = {"transformer": transformer}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "transformer": make_adamw([transformer], recipe.learning_rate, recipe.weight_decay, betas=(0.9, 0.95))
        }
        self.frozen: list[nn.Module] = [clip]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """Codes int64 (B, N) and the tokens (B, T) of one caption each."""
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        return {"codes": codes, "tokens": self.tokens.draw(rows, rng)}

    def objectives(self, batch: dict[str, Tensor], step: int) -> Iterator[Objective]:
        """Cross-entropy of every code given those before it."""
        condition = text_condition(self.clip, batch["tokens"], self.config)
        read = spoil(batch["codes"][:, :-1], self.recipe.code_noise, self.config.codebook_size)
        logits = self.networks["transformer"](read, condition)  # (B, N, K)
        loss = code_loss(logits, batch["codes"], self.recipe.label_smoothing)
        right = logits.detach().argmax(-1) == batch["codes"]
        yield Objective("transformer", loss, {"accuracy": right.float().mean()})

    def preview(self, network: nn.Module) -> Image.Image | None:
        """Whatever the caller's `draw` makes of the network."""
        return self.draw(network) if self.draw is not None else None
