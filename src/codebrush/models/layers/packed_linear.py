"""Linear layers whose weights are stored as a CPU reads them fastest: in fewer bits for products with few rows, where
reading the weights takes the time, and in the blocks of oneDNN."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)
L = TypeVar("L", bound=nn.Module)
LEAST = 1 << 14  # weights of a layer that is packed in fewer bits: smaller ones are read from the cache anyway
ORDERED = {"float32": torch.float32, "bf16": torch.bfloat16}  # kinds whose weights are only ordered
DEVIATION = torch.finfo(torch.float32).tiny  # what a row of zeros is divided by


def can_pack() -> bool:
    """Whether this build of PyTorch has the products (FBGEMM, on x86)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def can_order() -> bool:
    """Whether this build of PyTorch has oneDNN's products with weights in its own order."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class PackedLinear(nn.Module):
    """A linear layer with weights in another order, or of 16 or 8 bits: (..., in) -> (..., out). Not to be trained.

    "float16" rounds the weights to float16, and multiplies and adds in float32: results differ by some 2e-4 of their
    size. "int8" stores a whole number and a scale a row for the weights, and rounds each row of the input to 8 bits,
    too: results differ by about 1 %. With either, results are float32, and a row of the input comes to the same bits
    whatever rows are beside it. "float32" keeps the weights and orders them once instead of at each call; the same
    holds there, and with any number of threads. "bf16" does so in bfloat16, with what autocast computes.
    """

    def __init__(self, linear: nn.Linear, kind: str):
        super().__init__()
        self.kind = kind
        # shared: a module that takes part of it multiplies as without the packing; in float32 `plain` gives it back
        self.weight = None if kind == "float32" else linear.weight
        self.bias = linear.bias
        weight = linear.weight.detach().float().contiguous()
        if kind in ORDERED:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(ORDERED[kind]))
            self.added = None if linear.bias is None else linear.bias.detach().to(ORDERED[kind])
            return
        self.added = None if linear.bias is None else linear.bias.detach().float()
        if kind == "float16":
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
            return
        scales = weight.abs().amax(1).clamp(min=DEVIATION) / 127  # (out,)
        with warnings.catch_warnings():  # the stored form of these products has no other maker yet
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(weight), dtype=torch.int64)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def plain(self) -> nn.Linear:
        """The layer that was packed in float32, with the same weights bit for bit."""
        weight = self.packed.to_dense()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")  # which draws no random numbers
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return layer.train(self.training)

    def __deepcopy__(self, memo: dict[int, object]) -> "PackedLinear":
        return self  # it is frozen, and oneDNN's tensors cannot be copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (PackedLinear, (self.plain(), self.kind)) if self.kind == "float32" else super().__reduce_ex__(protocol)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.kind in ORDERED:
            return torch.ops.mkldnn._linear_pointwise(x.to(ORDERED[self.kind]), self.packed, self.added, "none", [], "")
        x = x.float()
        if self.kind == "float16":
            y = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
            return y if self.added is None else y + self.added
        largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp(min=DEVIATION)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y = multiply(x / largest, 1 / 127, 128, self.packed)  # so that rows do not share a scale
        return y.mul_(largest) if self.added is None else torch.addcmul(self.added, y, largest)


def with_packed_linears(network: N, kind: str) -> N:
    """A copy of a frozen `network` whose large linear layers are `PackedLinear`, and of kind "float32" all of them, of
    which no module then can take a part (`Attention.first`); all else shares its tensors."""
    least = 0 if kind == "float32" else LEAST
    return _with_other_layers(
        network, nn.Linear, lambda layer: PackedLinear(layer, kind) if layer.weight.numel() >= least else layer
    )


def with_plain_linears(network: N) -> N:
    """A copy of a `network` with its layers as they were before `with_packed_linears` packed them in float32."""
    return _with_other_layers(network, PackedLinear, lambda layer: layer.plain())


def _with_other_layers(network: N, kind: type[L], replaced: Callable[[L], nn.Module]) -> N:
    """A copy with another layer for each one of exactly this kind; all else shares its tensors."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is kind:
                setattr(parent, name, replaced(child))
    return copied
