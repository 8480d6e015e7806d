"""The sizes of a code transformer, and the choices that published ones make differently."""

from dataclasses import dataclass
from typing import Literal

from codebrush.models.layers.transformer import Activation, Norm, TransformerConfig


@dataclass(frozen=True)
class CodeTransformerConfig:
    """Sizes of a code transformer. A network has no place for a condition whose field is 0 or False.

    The conditions: `text_features`, `text_embedding` and `image_embedding` are the width of each one's vectors,
    `text_length` is how many text tokens the prefix holds, `labels` the number of classes, and `source_codes` says
    whether the prefix has room for the codes of a source picture. With `aligned_source` each code of the source is also
    added where the code of the same place is predicted, so that attention need not find it. `condition_dropout` is the
    chance in training that all conditions are dropped, and then again of each one by itself.

    With `modulation` the pooled embeddings also shift, scale and gate every block of the long transformer (adaLN-Zero,
    Peebles and Xie 2023, section 3.2).

    A `masked` network does not draw code after code: it sees the codes that are known, wherever they are, and predicts
    all others (MaskGIT, Chang et al. 2022). Holes of a picture are then codes that are not known, and need no source.

    `block` is the side of the square of codes that the long transformer takes as one step (1: code after code), and
    `block_layers` the layers of the short transformer that writes the codes of a square.

    The rest are choices that published models make differently. `text_projection` "mlp" has a hidden layer and no norm
    (LlamaGen). `hide_padding` excludes padding of the text from attention; otherwise a learned vector replaces it.
    Without a `start_token` the last vector of the condition predicts the first code. `rotary` "grid" gives the codes
    2-D rotary positions from (1, 1) on and the prefix (0, 0); "silent" counts the grid from (0, 0) and zeroes queries
    and keys of the prefix (LlamaGen); "none" has no rotary positions (Taming). `hidden` is the MLP's inner width; 0
    means the usual one.
    """

    codebook_size: int
    grid: tuple[int, int]
    width: int
    layers: int
    heads: int
    block: int = 1
    block_layers: int = 1
    text_features: int = 0
    text_length: int = 0
    text_embedding: int = 0
    image_embedding: int = 0
    source_codes: bool = False
    aligned_source: bool = False
    labels: int = 0
    modulation: bool = False
    masked: bool = False
    condition_dropout: float = 0.1
    dropout: float = 0.0
    activation: Activation = "swiglu"
    norm: Norm = "rms"
    hidden: int = 0
    learned_positions: bool = True
    rotary: Literal["grid", "silent", "none"] = "grid"
    text_projection: Literal["norm", "mlp"] = "norm"
    hide_padding: bool = False
    start_token: bool = True

    @property
    def code_count(self) -> int:
        """N, the number of codes of one picture."""
        return self.grid[0] * self.grid[1]

    @property
    def block_size(self) -> int:
        """M, the number of codes of one block."""
        return self.block**2

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks; there are N / M of them."""
        return self.grid[0] // self.block, self.grid[1] // self.block

    @property
    def prefix_length(self) -> int:
        """Vectors in front of the codes, with a source; the last one is the start token where there is one."""
        return sum(length for _, length in self.conditions) + self.start_token

    @property
    def linear_weights(self) -> int:
        """About how many weights each step of drawing reads: those of the long transformer and of the output."""
        block = TransformerConfig(self.width, 1, self.heads, hidden=self.hidden, activation=self.activation)
        mlp = (3 if self.activation == "swiglu" else 2) * block.mlp_width
        modulation = 6 * self.width if self.modulation else 0
        return self.layers * self.width * (4 * self.width + mlp + modulation) + self.codebook_size * self.width

    @property
    def conditions(self) -> list[tuple[str, int]]:
        """Name and length of each condition that this network has, in the order of the prefix."""
        lengths = {"text_features": self.text_length, "source_codes": self.code_count // self.block_size}
        names = ("text_features", "text_embedding", "image_embedding", "source_codes", "labels")
        return [(name, lengths.get(name, 1)) for name in names if getattr(self, name)]
