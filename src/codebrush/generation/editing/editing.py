"""Makes pictures from a picture: variations, a hole filled, redrawn under a prompt, or in another style.

All four are drawings of a painter from other conditions than a prompt alone: the picture's CLIP embedding, its codes
around a hole, some of its codes (a flow: its latent in noise), or all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import Picture
from codebrush.errors import ImageError, PackError, PromptError, UsageError
from codebrush.files import file_sha256
from codebrush.generation.editing.canvas import (
    Canvas,
    boxed_canvas,
    check_extend,
    extended_canvas,
    masked_canvas,
    warn_of_blur,
    whole_canvas,
)
from codebrush.generation.manifest import edit_entry, picture_entry, read_edit
from codebrush.generation.options import DrawOptions, checked_option
from codebrush.generation.sampling.drawing import Drawing, Known
from codebrush.generation.sampling.flow import Start
from codebrush.generation.sampling.sampler import Sampler, checked_sampling
from codebrush.generation.seeding import stream
from codebrush.generation.sources import Sources, pixels_sha256
from codebrush.generation.transparent_ground import (
    Transparency,
    check_transparency,
    is_transparent,
    with_transparent_ground,
)
from codebrush.generation.wording import check_style
from codebrush.models.condition import Condition
from codebrush.pack.pack import Pack

EDITS = ("vary", "edit", "inpaint", "translate")
STRENGTH = 0.6  # how much of a picture an edit redraws by default
VARIED = 0.7  # the time to which a flow noises a picture that it varies, by default
KEPT = 2  # the key of the random stream that chooses which codes are kept
PULL = 20.0  # weight of the pull towards the picture that guidance starts from, at strength 0
LIKENESS = 1.0  # weight of a translation's likeness to its source, beside that to its style, in the score


def guided_edit(picture: str, strength: float | None = None) -> dict[str, Any]:
    """The options of guidance that edits the picture in the file `picture`: it starts from the picture's own latent,
    and is pulled back to it the more strongly, the lower `strength` is (0 to 1; None: `STRENGTH`).

    Raises:
        UsageError: if the strength is out of its range.
    """
    strength = STRENGTH if strength is None else strength
    if not 0 < strength <= 1:
        raise UsageError(f"strength must be above 0 and up to 1, not {strength:g}")
    return {"init": picture, "init_weight": PULL * (1 - strength)}


@dataclass(frozen=True)
class Edit:
    """What is done to a picture: `kind` is "vary", "edit" (redraw a share `strength` of it), "inpaint" or "translate".

    An "inpaint" has one of a `mask` of the picture's size, a `box` (x, y, width, height) and an `extend` of pixels by
    side. A flow begins it from what the picture shows there, noised to the time `strength`; None is 1, which leaves
    nothing of that, for an "edit" STRENGTH, and for a flow's "vary" VARIED. `transparency` "kept" makes the ground of
    what is drawn transparent if the picture has transparency; see `with_transparent_ground`. The manifest names files
    by their paths; of a picture in memory it has the hash alone, and a replay needs the picture.

    Raises:
        UsageError: if the values do not go together, or one is out of its range.
    """

    kind: str
    picture: Picture
    prompt: str = ""
    strength: float | None = None
    mask: Picture | None = None
    box: tuple[int, int, int, int] | None = None
    extend: Mapping[str, int] = field(default_factory=dict)
    style: str = ""
    transparency: Transparency = "kept"

    def __post_init__(self) -> None:
        if self.kind not in EDITS:
            raise UsageError(f"an edit is one of {', '.join(EDITS)}, not {self.kind}")
        if self.strength is None and self.kind != "vary":  # of which the painter decides
            object.__setattr__(self, "strength", STRENGTH if self.kind == "edit" else 1.0)
        if self.strength is not None and (not isinstance(self.strength, Real) or not 0 < self.strength <= 1):
            raise UsageError(f"strength must be above 0 and up to 1, not {self.strength}")
        if not isinstance(self.prompt, str):
            raise PromptError(f"a prompt is a text, not {type(self.prompt).__name__}")
        if self.kind == "edit" and not self.prompt.strip():
            raise UsageError(
                "give a prompt to redraw the picture under, or the part of it to paint: a mask, box or extend"
            )
        check_transparency(self.transparency)
        ways = [way for way in (self.mask, self.box, self.extend) if way]
        if (self.kind == "inpaint") != (len(ways) == 1):
            raise UsageError("give one of mask, box and extend: they all choose the part to paint")

    def to_entry(self) -> dict[str, Any]:
        """The method and details in the manifest. Raises ImageError if a picture's file cannot be read."""
        details: dict[str, Any] = {
            "edit": {"strength": self.strength},
            "vary": {"strength": None if self.strength == 1 else self.strength},
            "inpaint": {
                "box": self.box,
                "extend": dict(self.extend),
                "strength": None if self.strength == 1 else self.strength,
            },
            "translate": {"style": self.style},
        }.get(self.kind, {})
        mask = None if self.mask is None else _entry_of(self.mask)
        kept = "" if self.transparency == "dropped" or not is_transparent(self.picture) else self.transparency
        return edit_entry(self.kind, self.prompt, _entry_of(self.picture), mask, **details, transparency=kept)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], sources: Sources = Sources()) -> "Edit":
        """The edit that a manifest describes, of pictures that are among `sources`.

        Raises:
            ImageError: if one of its pictures is missing or has changed.
            KeyError, TypeError, ValueError, UsageError: if the manifest is damaged.
        """
        values = {"transparency": "dropped", **read_edit(manifest)}
        if values["kind"] == "vary":
            values = {"strength": 1.0, **values}
        for name in [name for name in ("picture", "mask") if name in values]:
            values[name] = sources.picture(values[name], name)
        return cls(**values)


def checked_edits(edits: list[Edit], size: int) -> list[Edit]:
    """The edits, whose parts to paint are checked before a model is loaded, for a pack of `size` pixels square.

    Warns if one will be blurred.

    Raises:
        UsageError: if there is no such part, or it is too large.
        ImageError: if the picture or the mask cannot be read.
    """
    for edit in edits:
        if edit.kind == "inpaint":
            canvas = _canvas_of(edit, size)
            check_extend(edit.picture, edit.extend)
            warn_of_blur(canvas, size)
    return edits


def _canvas_of(edit: Edit, size: int) -> Canvas:
    """The picture of an "inpaint" with its hole, for a pack of `size` pixels square."""
    if edit.mask is not None:
        return masked_canvas(edit.picture, edit.mask, size)
    if edit.box is not None:
        return boxed_canvas(edit.picture, edit.box, size)
    return extended_canvas(edit.picture, edit.extend, size)


def prepare_edit(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The drawing of an edit. Raises PackError if the painter was not trained for it."""
    prepare = {"vary": _varied, "edit": _redrawn, "inpaint": _inpainted, "translate": _translated}[edit.kind]
    if edit.strength is None:
        edit = replace(edit, strength=VARIED if sampler.painter.from_noise else 1.0)
    with torch.no_grad():
        drawing = prepare(sampler, edit, options)
    return replace(drawing, entry=edit.to_entry())


def _varied(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The drawing of a variation: drawn from the picture's embedding, by a flow also from its noised latent, and scored
    by that embedding."""
    sampler.require_image_embedding()
    embedding = sampler.embed([edit.picture])  # (1, E)
    drawing = Drawing("", options, [(Condition(image_embedding=embedding), 1.0)], embedding, [1.0])
    if edit.strength != 1:
        if not sampler.painter.from_noise:
            raise UsageError("the strength of a variation is for the method flow: leave it out")
        pixels = whole_canvas(edit.picture).view(sampler.pack.image_size)[0]
        drawing = replace(drawing, start=_start(sampler, edit, pixels))
    if edit.transparency == "dropped" or not is_transparent(edit.picture):
        return drawing
    return replace(drawing, finish=with_transparent_ground)  # it shows other things in other places than the picture


def _inpainted(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The drawing of an inpainting: the codes outside the hole stay, and every code that the hole touches is drawn."""
    canvas = _canvas_of(edit, sampler.pack.image_size)
    pixels, share = canvas.view(sampler.pack.image_size)
    _, codes = sampler.encode(pixels)
    rows, columns = codes.shape[1:]
    hole = F.adaptive_max_pool2d(share[None], (rows, columns)) > 0  # (1, h, w)
    drawing = _around(sampler, edit, options, codes, ~hole.to(codes.device), canvas)
    if edit.strength == 1:
        return drawing
    before = pixels if edit.extend else canvas.whole(sampler.pack.image_size)  # beyond its edges there is no picture
    return replace(drawing, start=_start(sampler, edit, before))


def _redrawn(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The drawing of an edit of the square in the middle: some codes, chosen by the seed, stay and others are redrawn.

    A flow adds noise to all of it, and takes it away again under the prompt.
    """
    canvas = whole_canvas(edit.picture)
    pixels = canvas.view(sampler.pack.image_size)[0]
    if sampler.painter.from_noise:
        ground = ground_of(edit, canvas, sampler.pack.image_size)
        return replace(sampler.prepare(edit.prompt, options), start=_start(sampler, edit, pixels), finish=ground)
    _, codes = sampler.encode(pixels)
    order = torch.from_numpy(stream(options.seed, KEPT).permutation(codes[0].numel()))
    kept = torch.ones(codes[0].numel(), dtype=torch.bool)
    assert edit.strength is not None
    kept[order[: max(1, round(edit.strength * len(order)))]] = False
    return _around(sampler, edit, options, codes, kept.view(codes.shape).to(codes.device), canvas)


def _start(sampler: Sampler, edit: Edit, pixels: Tensor) -> Start:
    """What a flow begins from: a window's pixels (3, S, S), noised as much as the edit says."""
    assert edit.strength is not None
    return Start(sampler.vqgan.encode(pixels[None].to(sampler.device)), edit.strength)


def _translated(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The drawing of a translation: drawn from all codes of the square in the middle and the pack's text for the style.

    A pack may limit how much a code transformer changes the codes: at each position, `likeness` times the cosine with
    the code it had is added to the logits of every code.
    """
    known = sampler.pack.info.get("translation", {})
    if not (known.get("styles") and sampler.painter.reads_source):
        raise PackError(
            f"this pack was not trained to translate: train its {sampler.painter.label} with pair_share and one of "
            "pair_captions, like '{style} style'"
        )
    styles = known["styles"]
    check_style(edit.style, styles)
    canvas = whole_canvas(edit.picture)
    latent, codes = sampler.encode(canvas.view(sampler.pack.image_size)[0])
    drawing = sampler.prepare_literal(known["text"].replace("{style}", edit.style), options)
    source = Condition(source_codes=codes)
    conditions = [(replace(condition, source_codes=codes), weight) for condition, weight in drawing.conditions]
    seen = sampler.embed([canvas.image])
    texts, weights = torch.cat([drawing.texts, seen]), [*drawing.weights, LIKENESS]
    vectors = F.normalize(sampler.vqgan.quantizer.vectors, dim=1)  # (K, d)
    bias = float(known.get("likeness", 0.0)) * F.normalize(latent, dim=1)[0].flatten(1).T @ vectors.T  # (N, K)
    return replace(
        drawing, conditions=conditions, unconditional=source, bias=bias, texts=texts, weights=weights, judged_by=None,
        finish=ground_of(edit, canvas, sampler.pack.image_size),
    )  # fmt: skip


def translation_defaults(pack: Pack) -> dict[str, Any]:
    """The sampling options that pack.json sets for translations, without `retouch`, which is not for them. Raises
    PackError if one is wrong."""
    own = dict(pack.info.get("translation", {}).get("defaults", {}))
    try:
        return {name: checked_option(name, value) for name, value in checked_sampling(own).items()} | {"retouch": 0}
    except UsageError as error:
        raise PackError(f"{pack.folder}: among the defaults of its translation, {error}") from error


def _around(sampler: Sampler, edit: Edit, options: DrawOptions, codes: Tensor, kept: Tensor, canvas: Canvas) -> Drawing:
    """The drawing around known codes (1, h, w): those in `kept` (1, h, w) stay; the rest are drawn and see them all."""
    if not sampler.painter.fills_holes:
        raise PackError(
            "this pack's code transformer fills no holes: train one with hole_share, or use the method guide"
        )
    if edit.prompt.strip():
        drawing = sampler.prepare(edit.prompt, options)
    else:  # nothing says what belongs in the hole: candidates are scored by their likeness to the picture
        seen = sampler.embed([edit.picture])
        drawing = Drawing("", options, [(Condition(), 1.0)], seen, [1.0])
    drawing = sampler.painter.around(replace(drawing, unconditional=Condition()), Known(codes, kept))
    ground = ground_of(edit, canvas, sampler.pack.image_size)
    if edit.kind != "inpaint":
        return replace(drawing, finish=ground)
    return replace(drawing, to_score=canvas.composed, finish=lambda drawn: canvas.finish(ground(drawn)))


def ground_of(edit: Edit, canvas: Canvas, size: int) -> Callable[[Image.Image], Image.Image]:
    """What makes the ground of a drawn window, `size` pixels square, transparent if that of the edit's picture is."""
    before = None if edit.transparency == "dropped" else canvas.before(size)
    return lambda drawn: drawn if before is None else with_transparent_ground(drawn, before)


def _entry_of(picture: Picture) -> dict[str, str]:
    if isinstance(picture, Image.Image):
        return picture_entry(pixels_sha256(picture))
    try:
        digest = file_sha256(picture)
    except OSError as error:
        raise ImageError(f"{picture}: cannot be read: {error.strerror or error}") from error
    return picture_entry(digest, str(Path(picture).absolute()))
