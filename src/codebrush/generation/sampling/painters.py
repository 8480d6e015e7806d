"""The two painters, which draw the codes of pictures from the same drawings: code after code, or as a flow."""

from dataclasses import replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from codebrush.errors import UsageError
from codebrush.generation.options import BF16, FLOAT32
from codebrush.generation.sampling.decoding import draw_codes, draw_large, picture_uniforms
from codebrush.generation.sampling.drawing import Drawing, Known
from codebrush.generation.sampling.flow import LEAST, FlowSettings, KnownLatent, draw_latents, picture_noise
from codebrush.generation.sampling.half_drawn import Look
from codebrush.generation.sampling.retouching import around, check_retouching, retouch_codes
from codebrush.generation.sampling.side_by_side import (
    draws_side_by_side,
    is_small,
    parts_of,
    run_side_by_side,
    slices_of,
)
from codebrush.generation.sampling.weighted_conditions import rows_of
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.layers.packed_linear import can_order, can_pack, with_packed_linears, with_plain_linears
from codebrush.models.precision import has_bf16
from codebrush.models.vqgan import VQGAN
from codebrush.pack.members import PAINTERS, usual_painter_of
from codebrush.pack.pack import Pack, PainterConfig
from codebrush.progress import Progress, shares


def draws(pack: Pack) -> bool:
    """Whether a pack has a painter."""
    return any(map(pack.has, PAINTERS.values()))


def usual_painter(pack: Pack) -> str:
    """The method that draws unless another is asked for: "painter" of pack.json, "sample" or "flow"; without it, or
    without that member, the code transformer, or the flow if the pack has that alone."""
    return usual_painter_of(pack.info["members"], pack.info.get("painter")) or "sample"


def is_masked(pack: Pack) -> bool:
    """Whether the pack's code transformer is one that predicts hidden codes, in steps."""
    return pack.has("transformer") and pack.config(CodeTransformerConfig).masked


class Painter(Protocol):
    """What a sampler draws with.

    `label` is what messages call it, `method` that of its pictures in manifests, `from_noise` whether it turns noise
    into pictures, `reads_source` whether it was trained on source pictures, and `fills_holes` whether it sees codes
    that are known on all sides.
    """

    label: str
    method: str
    from_noise: bool

    @property
    def config(self) -> PainterConfig: ...

    @property
    def reads_source(self) -> bool: ...

    @property
    def fills_holes(self) -> bool: ...

    def around(self, drawing: Drawing, known: Known) -> Drawing:
        """The drawing around known codes (1, h, w), which its conditions have as their source if the network reads it
        there."""
        ...

    def paint(self, drawing: Drawing, pictures: range, grid: tuple[int, int], progress: Progress | None) -> Tensor:
        """The codes (B, h, w) int64 of some pictures of a drawing, for a grid of (h, w). `progress` counts steps.

        Raises:
            UsageError: if the grid is not one that this drawing can have.
        """
        ...


def in_order(network: CodeTransformer) -> CodeTransformer:
    """The network with all its linear layers' weights in oneDNN's order, float32."""
    jobs = [lambda _: with_packed_linears(network, FLOAT32)]
    return run_side_by_side(jobs, None)[0]  # on one thread, which takes a tenth of the time


class CodePainter:
    """Draws code after code with a code transformer."""

    label = "code transformer"
    method = "sample"
    from_noise = False

    def __init__(self, transformer: CodeTransformer) -> None:
        self.transformer = transformer
        self._ordered = False
        self._stored: dict[str, CodeTransformer] = {}

    def network(self, weights: str) -> CodeTransformer:
        """The network with its weights stored as one of WEIGHTS; made at the first call. A small one draws with FLOAT32
        ones in oneDNN's order, and then keeps them in no other.

        Raises:
            UsageError: if this machine has no products for them.
        """
        if weights == FLOAT32:
            if (
                not self._ordered
                and can_order()
                and is_small(self.transformer.config.linear_weights, self.transformer.device)
            ):
                self.transformer, self._ordered = in_order(self.transformer), True
            return self.transformer
        if weights not in self._stored:
            if not can_pack() or self.transformer.device.type != "cpu":
                raise UsageError(f"weights in {weights} are for x86 processors: open the pack with weights float32")
            self._stored[weights] = with_packed_linears(self.plain, weights)
        return self._stored[weights]

    @property
    def plain(self) -> CodeTransformer:
        """The network with its weights as they were loaded."""
        return with_plain_linears(self.transformer) if self._ordered else self.transformer

    @property
    def config(self) -> PainterConfig:
        """The network's."""
        return self.transformer.config

    @property
    def reads_source(self) -> bool:
        """Whether the network was trained on the codes of source pictures."""
        return self.transformer.config.source_codes

    @property
    def fills_holes(self) -> bool:
        """Whether the network sees known codes on all sides."""
        return self.transformer.config.source_codes or self.transformer.config.masked

    def around(self, drawing: Drawing, known: Known) -> Drawing:
        """See `Painter`."""
        return around(self.transformer, drawing, known)

    def paint(self, drawing: Drawing, pictures: range, grid: tuple[int, int], progress: Progress | None) -> Tensor:
        """See `Painter`."""
        options, count = drawing.options, grid[0] * grid[1]
        network = self.network(options.weights)
        uniforms = picture_uniforms(options.seed, pictures, count)
        if grid != self.transformer.config.grid:
            _check_own_size(drawing)
            if options.retouch:
                raise UsageError("retouch is for pictures of the pack's own size: set it to 0, or leave out size")
            return draw_large(network, drawing.conditions, uniforms, grid, options.filters, progress=progress)
        if options.retouch:
            check_retouching(drawing, self.fills_holes)
        rounds, look = shares(progress, 1 + options.retouch), drawing.look
        codes = draw_codes(
            network,
            drawing.conditions,
            uniforms,
            options.filters,
            unconditional=drawing.unconditional,
            known=drawing.known,
            bias=drawing.bias,
            progress=rounds[0],
            look=None if look is None else lambda done, first, codes: look(done, pictures.start + first, codes),
        )
        again = partial(picture_uniforms, options.seed, pictures, count)
        return retouch_codes(network, drawing, codes, again, rounds[1:])


class FlowPainter:
    """Draws latents with a flow transformer and takes the nearest codes of them."""

    label = "flow transformer"
    method = "flow"
    from_noise = True
    fills_holes = True

    def __init__(self, flow: FlowTransformer, vqgan: VQGAN) -> None:
        self.flow, self.vqgan = flow, vqgan

    def network(self, weights: str) -> tuple[FlowTransformer, str]:
        """The network to draw with for one of FLOW_WEIGHTS, and its precision: float32 where bfloat16 is not faster."""
        if weights == FLOAT32 or not has_bf16(self.flow.device):
            return self.flow, FLOAT32
        packs = self.flow.device.type == "cpu" and can_order()
        return (self._packed if packs else self.flow), BF16

    @cached_property
    def _packed(self) -> FlowTransformer:
        return with_packed_linears(self.flow, BF16)

    @property
    def config(self) -> PainterConfig:
        """The network's."""
        return self.flow.config

    @property
    def reads_source(self) -> bool:
        """Whether the network was trained on the latents of source pictures."""
        return self.flow.config.source

    def around(self, drawing: Drawing, known: Known) -> Drawing:
        """See `Painter`."""
        return drawing.around(known, Condition(), shown=True)

    def paint(self, drawing: Drawing, pictures: range, grid: tuple[int, int], progress: Progress | None) -> Tensor:
        """See `Painter`."""
        options = drawing.options
        if grid != self.flow.config.grid:
            _check_own_size(drawing)
        noise = drawing.noise
        if noise is None:
            noise = picture_noise(options.seed, pictures, (self.flow.config.latent_channels, *grid))
        network, precision = self.network(options.weights)
        conditions = [(self._with_latents(condition), weight) for condition, weight in drawing.conditions]
        away = None if drawing.unconditional is None else self._with_latents(drawing.unconditional)

        def draw(rows: slice, progress: Progress | None) -> Tensor:
            own, look = pictures[rows], drawing.look
            known = None if drawing.known is None else drawing.known.rows(rows)
            latents = draw_latents(
                network,
                [(rows_of(condition, rows), weight) for condition, weight in conditions],
                noise[rows],
                options.flow or FlowSettings(),
                options.cfg,
                unconditional=None if away is None else rows_of(away, rows),
                known=None if known is None else KnownLatent(self.vqgan.quantizer.look_up(known.codes), known.fixed),
                start=None if drawing.start is None else drawing.start.rows(rows),
                lead=None if drawing.lead is None else drawing.lead(own),
                precision=precision,
                seen=None if look is None else partial(self._show, known, own.start, look),
                progress=progress,
            )
            return self._codes(known, latents)

        if drawing.lead is None and draws_side_by_side(self.flow):
            slices = slices_of(len(noise), parts_of(len(noise), LEAST))
            return torch.cat(run_side_by_side([partial(draw, rows) for rows in slices], progress))
        return draw(slice(0, len(noise)), progress)

    def _codes(self, known: Known | None, latents: Tensor) -> Tensor:
        """The codes (B, h, w) nearest to latents, with those that are known."""
        codes = self.vqgan.quantize(latents)[1]
        return codes if known is None else torch.where(known.fixed, known.codes, codes)

    def _show(self, known: Known | None, first: int, look: Look, clean: Tensor, step: int, steps: int) -> None:
        codes = self._codes(known, clean)
        look(codes[0].numel() * step // steps, first, codes)

    def _with_latents(self, condition: Condition) -> Condition:
        """The condition with the latents of its source's codes in their place."""
        if condition.source_codes is None:
            return condition
        latent = self.vqgan.quantizer.look_up(condition.source_codes)
        return replace(condition, source_codes=None, source_latent=latent)


def _check_own_size(drawing: Drawing) -> None:
    if any(part is not None for part in (drawing.unconditional, drawing.known, drawing.start, drawing.bias)):
        raise UsageError("an edit is drawn at the pack's own size: leave out size")
