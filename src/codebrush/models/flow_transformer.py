"""The flow transformer draws: it turns noise into a VQGAN's latent along nearly straight lines.

It is a diffusion transformer (DiT, Peebles and Xie 2023) that learns the velocity of rectified flow (Lipman et al.
2023; Liu et al. 2023). With x the latent of a picture and e Gaussian noise, the point at time t is

    x_t = (1 - t) x + t e,      velocity v = e - x,      so that x = x_t - t v:

time 1 is noise and time 0 the picture. Tokens are squares of `patch` x `patch` latent vectors; a prefix carries the
features of the text. The time and the pooled embeddings of text and picture shift, scale and gate every block. A
source picture is added to the tokens of the same place. Each condition may be left out; a learned vector then takes its
place, which is also what classifier-free guidance compares with (Ho and Salimans 2022).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.code_positions import prefix_and_grid_factors
from codebrush.models.condition import Condition
from codebrush.models.layers.convolution import fast_layout, zero_convolution
from codebrush.models.layers.transformer import Transformer, TransformerConfig
from codebrush.models.pretrained import PretrainedModel

TIME_WIDTH = 256  # sines and cosines that a time becomes
TIME_SCALE = 1000.0  # times are from 0 to 1, and the frequencies made for steps from 0 to 1,000


@dataclass(frozen=True)
class FlowTransformerConfig:
    """Sizes of a flow transformer. A network has no place for a condition whose field is 0 or False.

    `latent_channels` is d, the length of the VQGAN's latent vectors, and `grid` (h, w) how many there are for the
    pictures it was trained on. With `unit_latents` they are compared as unit vectors, as an L2-normalised codebook
    does. `patch` is the side of the square of latent vectors that is one token; `stem` the channels of the
    convolutions before and behind the transformer, which see single latent vectors.

    The conditions are those of a code transformer: `text_features`, `text_embedding` and `image_embedding` are the
    width of each one's vectors, `text_length` is how many text tokens the prefix holds, and `source` says whether it
    reads the latent of a source picture. `condition_dropout` is the chance in training that all conditions are dropped,
    and then again of each one by itself.

    Raises:
        PackError: if the grid has no whole patches.
    """

    latent_channels: int
    grid: tuple[int, int]
    width: int
    layers: int
    heads: int
    patch: int = 2
    stem: int = 64
    unit_latents: bool = True
    text_features: int = 0
    text_length: int = 0
    text_embedding: int = 0
    image_embedding: int = 0
    source: bool = False
    condition_dropout: float = 0.1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if any(side % self.patch for side in self.grid):
            raise PackError(f"a grid of {self.grid[0]} x {self.grid[1]} has no whole squares of {self.patch}")

    @property
    def linear_weights(self) -> int:
        """About how many weights each step of drawing reads: those of the transformer."""
        block = TransformerConfig(self.width, 1, self.heads, activation="swiglu")
        return self.layers * self.width * (4 * self.width + 3 * block.mlp_width + 6 * self.width)

    @property
    def conditions(self) -> list[str]:
        """The names of the conditions that this network has; `Condition.present` is in this order."""
        flags = {"source_latent": self.source}
        names = ("text_features", "text_embedding", "image_embedding", "source_latent")
        return [name for name in names if flags.get(name, getattr(self, name, False))]


class FlowTransformer(PretrainedModel):
    """Predicts the velocity of a latent on its way from noise to a picture.

    `mean` and `deviation` (d,) are those of the latents it was trained on; inside, latents have mean 0 and variance 1.
    """

    config_class = FlowTransformerConfig
    compact = r"(transformer|time|tokens|patches|projections|source|final)\..*weight"
    config: FlowTransformerConfig
    mean: Tensor
    deviation: Tensor
    rotary: Tensor  # (2, T + N, head width / 2): rotary factors of the text and of the trained grid

    def __init__(self, config: FlowTransformerConfig):
        super().__init__()
        self.config = config
        width, squares = config.width, config.stem * config.patch**2
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("deviation", torch.ones(config.latent_channels))
        self.stem = nn.Sequential(
            nn.Conv2d(config.latent_channels, config.stem, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.stem, config.stem, 3, padding=1),
        )
        self.tokens = nn.Linear(squares, width)
        self.positions = nn.Parameter(torch.randn(1, width, *(side // config.patch for side in config.grid)) * 0.02)
        self.source = None  # without a bias, so that a source of which nothing is shown counts as none
        if config.source:
            self.source = nn.Linear((config.latent_channels + 1) * config.patch**2, width, bias=False)
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.projections, self.nulls = nn.ModuleDict(), nn.ParameterDict()
        for name in config.conditions:
            if name != "source_latent":
                self.projections[name] = nn.Sequential(nn.Linear(getattr(config, name), width), nn.LayerNorm(width))
                length = config.text_length if name == "text_features" else 1
                self.nulls[name] = nn.Parameter(torch.randn(length, width) * 0.02)
        self.prefix_positions = nn.Parameter(torch.randn(config.text_length, width) * 0.02)
        self.transformer = Transformer(
            TransformerConfig(
                width,
                config.layers,
                config.heads,
                activation="swiglu",
                norm="rms",
                bias=False,
                dropout=config.dropout,
                modulation=width,
            )
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-5)
        self.final = nn.Linear(width, 2 * width + config.stem)
        self.patches = nn.Linear(width, squares)
        self.head = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(config.stem, config.stem, 3, padding=1),
            nn.SiLU(),
            zero_convolution(config.stem, config.latent_channels),
        )
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)
        rows, columns = (side // config.patch for side in config.grid)
        self.register_buffer("rotary", self._rotary(rows, columns), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    def normalise(self, latent: Tensor) -> Tensor:
        """A VQGAN's latent, or quantised latent, (B, d, h, w) -> what flows: mean 0 and variance 1."""
        if self.config.unit_latents:
            latent = F.normalize(latent, dim=1)
        return (latent - self.mean[:, None, None]) / self.deviation[:, None, None]

    def denormalise(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`; unit vectors are exact only once they are quantised."""
        return x * self.deviation[:, None, None] + self.mean[:, None, None]

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict the velocity.

        Args:
            x: (B, d, h, w), the normalised latent at `time`; h and w are multiples of the patch.
            time: (B,), from 0 (a picture) to 1 (noise).
            condition: of B rows or of one; None means no condition.

        Returns:
            (B, d, h, w).
        """
        config, batch = self.config, len(x)
        condition = (condition or Condition()).expand(batch)
        keep = self._keep(condition, batch)
        fine = self.stem(fast_layout(x))  # (B, stem, h, w)
        rows, columns = (side // config.patch for side in x.shape[-2:])
        tokens = self.tokens(_to_patches(fine, config.patch)) + self._positions(rows, columns)  # (B, N, D)
        if self.source is not None and condition.source_latent is not None:
            tokens = tokens + self._source(condition, keep["source_latent"])
        prefix = self._prefix(condition, keep, batch)  # (B, T, D)
        vector = self._vector(time, condition, keep)
        own = self.positions.shape[-2:] == (rows, columns)
        rotary = self.rotary if own else self._rotary(rows, columns).to(x.device)
        hidden = self.transformer(torch.cat([prefix, tokens], dim=1), rotary=rotary, vector=vector)
        hidden = self.final_norm(hidden[:, prefix.shape[1] :])
        shift, scale, share = self.final(F.silu(vector)).split([config.width, config.width, config.stem], dim=1)
        hidden = torch.addcmul(shift.unsqueeze(1), hidden, 1 + scale.unsqueeze(1))
        coarse = _from_patches(self.patches(hidden), (rows, columns), config.patch)  # (B, stem, h, w)
        fine = fine * (1 + share[:, :, None, None])
        return _linear_velocity(x, time) + self.head(coarse + fine)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The learned positions of a grid of tokens, (1, N, D); those of the trained grid are stretched to others."""
        positions = self.positions
        if positions.shape[-2:] != (rows, columns):
            positions = F.interpolate(positions, (rows, columns), mode="bicubic", align_corners=False)
        return positions.flatten(2).transpose(1, 2)

    def _rotary(self, rows: int, columns: int) -> Tensor:
        """Rotary factors of the text and of a grid of tokens, (2, T + N, head width / 2)."""
        text, head_width = self.config.text_length, self.config.width // self.config.heads
        return prefix_and_grid_factors([("text_features", text)], (rows, columns), head_width, False)

    def _keep(self, condition: Condition, batch: int) -> dict[str, Tensor]:
        """For each condition, the rows that have it, (B, 1) bool; in training some are dropped at random."""
        rate = self.config.condition_dropout if self.training else 0.0
        keep_any = torch.rand(batch, 1, device=self.device) >= rate
        kept = {}
        for number, name in enumerate(self.config.conditions):
            keep = keep_any & (torch.rand(batch, 1, device=self.device) >= rate)
            if condition.present is not None:
                keep = keep & condition.present[:, number : number + 1]
            kept[name] = keep
        return kept

    def _vector(self, time: Tensor, condition: Condition, keep: dict[str, Tensor]) -> Tensor:
        """What modulates the blocks: the time and the pooled embeddings, (B, D)."""
        vector = self.time(_waves(time).to(self.mean.dtype))
        for name in ("text_embedding", "image_embedding"):
            if name not in self.projections:
                continue
            null, given = self.nulls[name], getattr(condition, name)  # (1, D)
            vector = vector + (null if given is None else torch.where(keep[name], self.projections[name](given), null))
        return vector

    def _prefix(self, condition: Condition, keep: dict[str, Tensor], batch: int) -> Tensor:
        """The features of the text, (B, T, D); a learned vector takes the place of padding."""
        room, given = self.config.text_length, condition.text_features
        if not self.config.text_features:
            return self.prefix_positions.expand(batch, -1, -1)  # (B, 0, D)
        vectors = self.nulls["text_features"].expand(batch, -1, -1)
        if given is not None:
            length = min(room, given.shape[1])
            present = torch.zeros(batch, room, dtype=torch.bool, device=given.device)
            present[:, :length] = True if condition.text_mask is None else condition.text_mask[:, :length]
            features = self.projections["text_features"](F.pad(given[:, :length], (0, 0, 0, room - length)))
            vectors = torch.where((present & keep["text_features"]).unsqueeze(-1), features, vectors)
        return vectors + self.prefix_positions

    def _source(self, condition: Condition, keep: Tensor) -> Tensor:
        """What a source picture adds to the tokens, (B, N, D); nothing where none is given or all of it is hidden."""
        assert self.source is not None and condition.source_latent is not None
        latent = self.normalise(condition.source_latent)  # (B, d, h, w)
        shown = torch.ones_like(latent[:, :1])
        if condition.source_mask is not None:
            shown = condition.source_mask.reshape(shown.shape).to(shown.dtype)
        shown = shown * keep[:, :, None, None]
        return self.source(_to_patches(torch.cat([latent * shown, shown], dim=1), self.config.patch))


def _linear_velocity(x: Tensor, time: Tensor) -> Tensor:
    """The velocity where latents were independent normal numbers of variance 1, as noise is: the best linear
    prediction, to which the network adds the rest (Karras et al. 2022, section 5)."""
    t = time[:, None, None, None].to(x.dtype)
    return (2 * t - 1) / ((1 - t).square() + t.square()) * x


def _waves(time: Tensor) -> Tensor:
    """Times (B,) -> cosines and sines of rising wavelengths, (B, TIME_WIDTH) float32."""
    half = TIME_WIDTH // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = TIME_SCALE * time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> squares in raster order, (B, h w / patch², C patch²)."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def _from_patches(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `_to_patches` for a grid of (rows, columns) of squares."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), patch)
