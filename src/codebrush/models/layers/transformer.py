"""The transformer that every encoder and decoder here is built on: pre-norm blocks of attention and MLP."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codebrush.models.layers.attention import Attention, KVCache

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
Norm = Literal["layer", "rms"]
Modulated = tuple[Tensor, ...]  # shift, factor and gate of attention, then of the MLP, each (B, 1, D)
SAME_IN_TOWERS = ("norm", "bias", "modulation")  # fields of the config
LAYER_SCALE = 0.1  # initial gain of a residual branch


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer. `hidden` is the MLP's inner width; 0 means the usual one for the activation.

    `layer_scale` gives each residual branch a learned gain for every channel (Touvron et al. 2021, section 2).
    `modulation` is the width of a vector that shifts and scales the input of each branch and gates its output
    (adaLN-Zero, Peebles and Xie 2023, section 3.2); 0: none. A fresh network's gates are closed.
    """

    width: int
    layers: int
    heads: int
    hidden: int = 0
    activation: Activation = "gelu"
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    bias: bool = True
    dropout: float = 0.0
    layer_scale: bool = False
    modulation: int = 0

    @property
    def mlp_width(self) -> int:
        """The MLP's inner width: usually four times the width, or for SwiGLU, which has a third matrix, 8/3 of it
        rounded up to a multiple of 32."""
        if self.hidden:
            return self.hidden
        return 4 * self.width if self.activation != "swiglu" else -(-8 * self.width // 3 // 32) * 32


def blocks_of(tower: Any) -> TransformerConfig:
    """The sizes of a tower's blocks: the fields of its config that have the same names. A tower has no say in those of
    SAME_IN_TOWERS unless it names them. Raises AttributeError if it lacks another."""
    names = [each.name for each in fields(TransformerConfig)]
    names = [name for name in names if name not in SAME_IN_TOWERS or hasattr(tower, name)]
    return TransformerConfig(**{name: getattr(tower, name) for name in names})


def make_norm(config: TransformerConfig) -> nn.Module:
    """The config's normalisation over the last axis."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=config.norm_epsilon)


class MLP(nn.Module):
    """Two linear maps with GELU, QuickGELU or SwiGLU (Shazeer 2020) between them: (..., D) -> (..., D)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        gates = 2 if config.activation == "swiglu" else 1
        self.up = nn.Linear(config.width, gates * config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)  # (..., hidden), or twice that for SwiGLU
        if self.activation == "swiglu":
            gate, x = x.chunk(2, dim=-1)  # each (..., hidden)
            x = F.silu(gate) * x
        elif self.activation == "quick_gelu":
            # x sigmoid(1.702 x): SiLU's backward is one pass and keeps one tensor
            x = (
                F.silu(1.702 * x) / 1.702
                if torch.is_grad_enabled()
                else F.silu(x.mul_(1.702), inplace=True).div_(1.702)
            )
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(x)


class Block(nn.Module):
    """One pre-norm layer: attention and an MLP, each added to its input."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config.width, config.heads, config.bias)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        gain = nn.Parameter(torch.full((config.width,), LAYER_SCALE)) if config.layer_scale else None
        self.attention_gain = gain
        self.mlp_gain = None if gain is None else nn.Parameter(gain.detach().clone())
        self.modulation = nn.Linear(config.modulation, 6 * config.width) if config.modulation else None

    def forward(
        self,
        x: Tensor,
        *,
        first: bool = False,
        vector: Tensor | None = None,
        modulated: dict[int, Modulated] | None = None,
        layer: int = 0,
        **attention,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or with `first` the first token's output alone, attending to all: (B, 1, D).

        `vector` (B, M) is what a block with modulation reads. What it makes of it is kept in `modulated` under
        the number of the `layer`, for the next call with the same vector. See `Attention.forward` for the other
        arguments.
        """
        if self.modulation is not None and vector is not None:
            kept = {} if modulated is None else modulated
            if layer not in kept:
                kept[layer] = _modulated_by(self.modulation(F.silu(vector)))
            return self._modulated(x, kept[layer], layer, attention)
        normed = self.attention_norm(x)
        y = self.attention.first(normed) if first else self.attention(normed, layer=layer, **attention)
        x = (x[:, :1] if first else x) + self._branch(y, self.attention_gain)
        return x + self._branch(self.mlp(self.mlp_norm(x)), self.mlp_gain)

    def _branch(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return self.dropout(x if gain is None else x * gain)

    def _modulated(self, x: Tensor, modulated: Modulated, layer: int, attention: dict[str, Any]) -> Tensor:
        shift, factor, gate, mlp_shift, mlp_factor, mlp_gate = modulated
        y = self.attention(torch.addcmul(shift, self.attention_norm(x), factor), layer=layer, **attention)
        x = x + self._branch(y, gate)
        return x + self._branch(self.mlp(torch.addcmul(mlp_shift, self.mlp_norm(x), mlp_factor)), mlp_gate)


def _modulated_by(read: Tensor) -> Modulated:
    """What the layer of a block with modulation gives, (B, 6 D), in parts; its scales count from 1."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = read.unsqueeze(1).chunk(6, dim=-1)
    return shift, 1 + scale, gate, mlp_shift, 1 + mlp_scale, mlp_gate


class Transformer(nn.Module):
    """A stack of blocks without embedding or final norm: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.normal_(weight, std=0.02 * (2 * config.layers) ** -0.5)  # residual branches start small
            elif ".modulation." in name:
                nn.init.zeros_(weight)

    @torch.no_grad()
    def open_gates(self) -> None:
        """Set the modulation of all blocks to nothing but open gates: each block then does what it does without any."""
        for layer in (block.modulation for block in self.blocks if isinstance(block, Block)):
            if layer is not None:
                layer.weight.zero_()
                layer.bias.unflatten(0, (6, -1)).copy_(torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None])  # both gates are 1

    def forward(
        self,
        x: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        rotary: Tensor | None = None,
        cache: KVCache | None = None,
        vector: Tensor | None = None,
        modulated: dict[int, Modulated] | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D). See `Attention.forward` for the arguments, and `Block.forward` for `vector` and
        `modulated`; a `cache` is advanced by N tokens."""
        modulation: dict[str, Any] = {"vector": vector, "modulated": modulated}
        for layer, block in enumerate(self.blocks):
            x = block(x, causal=causal, mask=mask, rotary=rotary, cache=cache, layer=layer, **modulation)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def first(self, x: Tensor) -> Tensor:
        """The output of `forward` for the first token, (B, N, D) -> (B, D), without the last block's work on others."""
        for block in self.blocks[:-1]:
            x = block(x)
        return self.blocks[-1](x, first=True)[:, 0]

    def features(self, x: Tensor, **attention) -> list[Tensor]:
        """(B, N, D) -> the output of every block, each (B, N, D). See `Attention.forward` for the arguments."""
        outputs = []
        for block in self.blocks:
            x = block(x, **attention)
            outputs.append(x)
        return outputs


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
