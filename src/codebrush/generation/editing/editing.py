"""A picture in; others like it, with a hole filled, redrawn under a prompt or in another style, out.

All four are drawings of the code transformer with another condition: the picture's CLIP embedding, its codes around a
hole, some of its codes, or all of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from codebrush.data.images import decode_image
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.options import DrawOptions, checked_option
from codebrush.generation.sampling.canvas import (
    Canvas,
    Picture,
    boxed_canvas,
    extended_canvas,
    masked_canvas,
    whole_canvas,
)
from codebrush.generation.sampling.decoding import Known
from codebrush.generation.sampling.sampler import Drawing, Sampler, checked_sampling
from codebrush.generation.seeding import stream
from codebrush.models.condition import Condition
from codebrush.pack.pack import Pack

EDITS = ("vary", "edit", "inpaint", "translate")
STRENGTH = 0.6  # of an edit where nothing is said of it
KEPT = 2  # the key of the stream that chooses which codes are kept
LIKENESS = 1.0  # how much a translation's likeness to its source counts beside its style, when the best are chosen


@dataclass(frozen=True)
class Edit:
    """What is done to a picture: "vary", "edit" (redraw a share `strength` of it), "inpaint" or "translate".

    An "inpaint" has a `mask` of the picture's size, a `box` x, y, width, height or an `extend` of pixels by side. A
    file is named by its place; of a picture in memory only its hash is known, so that it cannot be replayed.
    """

    kind: str
    picture: Picture
    prompt: str = ""
    strength: float = STRENGTH
    mask: Picture | None = None
    box: tuple[int, int, int, int] | None = None
    extend: Mapping[str, int] = field(default_factory=dict)
    style: str = ""

    def __post_init__(self) -> None:
        if self.kind not in EDITS:
            raise UsageError(f"an edit is one of {', '.join(EDITS)}, not {self.kind}")
        if not 0 < self.strength <= 1:
            raise UsageError(f"strength must be above 0 and up to 1, not {self.strength:g}")
        if self.kind == "edit" and not self.prompt.strip():
            raise UsageError("say what the picture is to become, or what of it to paint: a mask, a box or an extension")
        ways = [way for way in (self.mask, self.box, self.extend) if way]
        if (self.kind == "inpaint") != (len(ways) == 1):
            raise UsageError("give one of a mask, a box and an extension, to paint in what it leaves open")

    def to_json(self) -> dict[str, Any]:
        """As plain values, with the sha256 of each picture."""
        named = {name: _named(getattr(self, name)) for name in ("picture", "mask") if getattr(self, name) is not None}
        kept = {"edit": {"prompt": self.prompt, **named}}
        values = {"inpaint": {"box": self.box, "extend": dict(self.extend)}, "translate": {"style": self.style}}
        values["edit"] = {"strength": self.strength}
        kept["edit"] |= {name: value for name, value in values.get(self.kind, {}).items() if value}
        return {"method": self.kind, **kept}

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> "Edit":
        """The edit of a manifest. Raises ImageError where one of its pictures is gone or is not what it was."""
        values = dict(manifest["edit"])
        for name in {"picture", "mask"} & values.keys():
            values[name] = _found(values[name])
        if "box" in values:
            values["box"] = tuple(values["box"])
        return cls(manifest["method"], **values)


def edited(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """The edit made ready to be drawn. Raises PackError where the pack's code transformer was not taught it."""
    ways = {"vary": _varied, "edit": _redrawn, "inpaint": _inpainted, "translate": _translated}
    with torch.no_grad():
        drawing = ways[edit.kind](sampler, edit, options)
    return replace(drawing, about=edit.to_json())


def _varied(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """Drawn from nothing but the picture's embedding, and judged by it."""
    if not sampler.transformer.config.image_embedding:
        raise PackError("this pack's code transformer reads no picture's embedding: train one with image_share")
    embedding = sampler.embed([edit.picture])  # (1, E)
    return Drawing("", options, [(Condition(image_embedding=embedding), 1.0)], embedding, [1.0])


def _inpainted(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    least = sampler.pack.image_size
    if edit.mask is not None:
        canvas = masked_canvas(edit.picture, edit.mask, least)
    elif edit.box is not None:
        canvas = boxed_canvas(edit.picture, edit.box, least)
    else:
        canvas = extended_canvas(edit.picture, edit.extend, least)
    pixels, share = canvas.view(sampler.pack.image_size)
    _, codes = sampler.encode(pixels)
    rows, columns = codes.shape[1:]
    hole = torch.nn.functional.adaptive_max_pool2d(share[None], (rows, columns)) > 0  # (1, h, w): touched at all
    return _around(sampler, edit, options, codes, ~hole.to(codes.device), canvas)


def _redrawn(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """Of the square in the middle, a share of the codes is kept, chosen by the seed, and the rest drawn anew."""
    canvas = whole_canvas(edit.picture)
    _, codes = sampler.encode(canvas.view(sampler.pack.image_size)[0])
    order = torch.from_numpy(stream(options.seed, KEPT).permutation(codes[0].numel()))
    kept = torch.ones(codes[0].numel(), dtype=torch.bool)
    kept[order[: max(1, round(edit.strength * len(order)))]] = False
    return _around(sampler, edit, options, codes, kept.view(codes.shape).to(codes.device), None)


def _translated(sampler: Sampler, edit: Edit, options: DrawOptions) -> Drawing:
    """From all codes of the square in the middle, under the pack's words for a style. Where the pack says so, each
    place is the more likely to get a code the nearer that is to the one it had (`likeness` times the cosine)."""
    known = sampler.pack.info.get("translation", {})
    if not (known.get("styles") and sampler.transformer.config.source_codes):
        raise PackError(
            "this pack was not taught to translate: train its code transformer with pair_share and one of "
            "pair_captions, like '{style} style'"
        )
    styles, words = known["styles"], known["text"]
    check_style(edit.style, styles)
    canvas = whole_canvas(edit.picture)
    latent, codes = sampler.encode(canvas.view(sampler.pack.image_size)[0])
    literal = words.replace("{style}", edit.style)
    drawing = sampler.prepare(literal, options)
    source = Condition(source_codes=codes)
    conditions = [(replace(condition, source_codes=codes), weight) for condition, weight in drawing.conditions]
    seen = sampler.embed([canvas.image])
    texts, weights = torch.cat([drawing.texts, seen]), [*drawing.weights, LIKENESS]
    vectors = F.normalize(sampler.vqgan.quantizer.vectors, dim=1)  # (K, d)
    pull = float(known.get("likeness", 0.0)) * F.normalize(latent, dim=1)[0].flatten(1).T @ vectors.T  # (N, K)
    return replace(drawing, conditions=conditions, without=source, bias=pull, texts=texts, weights=weights)


def check_style(style: str, styles: Sequence[str]) -> None:
    """Raises UsageError where a pack does not have a style."""
    if style not in styles:
        raise UsageError(f"the pack has no style '{style}': it has {', '.join(styles)}")


def translation_defaults(pack: Pack) -> dict[str, Any]:
    """Options of drawing that pack.json has for its translations. Raises PackError for what is none."""
    own = dict(pack.info.get("translation", {}).get("defaults", {}))
    try:
        return {name: checked_option(name, value) for name, value in checked_sampling(own).items()}
    except UsageError as error:
        raise PackError(f"{pack.folder}: among the defaults of its translation, {error}") from error


def _around(
    sampler: Sampler, edit: Edit, options: DrawOptions, codes: Tensor, kept: Tensor, canvas: Canvas | None
) -> Drawing:
    """Codes (1, h, w) of which some are `kept` (1, h, w) and seen from every side, the rest drawn under the prompt."""
    if not sampler.transformer.config.source_codes:
        raise PackError("this pack's code transformer fills no holes: train one with hole_share, or use guidance")
    source = Condition(source_codes=codes, source_mask=kept)
    if edit.prompt.strip():
        drawing = sampler.prepare(edit.prompt, options)
        conditions = [
            (replace(condition, source_codes=codes, source_mask=kept), weight)
            for condition, weight in drawing.conditions
        ]
        drawing = replace(drawing, conditions=conditions)
    else:  # to complete a picture; what fits best is what is most like it
        seen = sampler.embed([edit.picture])
        drawing = Drawing("", options, [(source, 1.0)], seen, [1.0])
    drawing = replace(drawing, known=Known(codes, kept), without=source)
    return drawing if canvas is None else replace(drawing, judged=canvas.composed, finish=canvas.finish)


def _named(picture: Picture) -> dict[str, str]:
    """How a manifest names a picture: by its place, if it has one, and its hash."""
    if isinstance(picture, Image.Image):
        return {"sha256": hashlib.sha256(decode_image(picture).convert("RGBA").tobytes()).hexdigest()}
    try:
        contents = Path(picture).read_bytes()
    except OSError as error:
        raise ImageError(f"{picture}: cannot be read: {error.strerror or error}") from error
    return {"file": str(Path(picture).absolute()), "sha256": hashlib.sha256(contents).hexdigest()}


def _found(named: Mapping[str, str]) -> Path:
    if "file" not in named:
        raise ImageError("the edit was made of a picture in memory, which is gone: make the edit again")
    if _named(named["file"])["sha256"] != named["sha256"]:
        raise ImageError(f"{named['file']} has changed since the edit was made: put the old one back")
    return Path(named["file"])
