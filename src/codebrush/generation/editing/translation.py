"""Translates a picture into another style with the pack's translator, and replays such a translation."""

from collections.abc import Mapping
from typing import Any

import torch

from codebrush.data.decoding.images import to_pil, to_tensor
from codebrush.errors import UsageError
from codebrush.generation.editing.canvas import whole_canvas
from codebrush.generation.editing.editing import Edit, ground_of
from codebrush.generation.manifest import check_translator, read_index_and_threads, translated_manifest
from codebrush.generation.options import FLOW_OPTIONS
from codebrush.generation.origin import check_origin, origin, torch_threads
from codebrush.generation.result import Result
from codebrush.generation.sampling.sampler import checked_sampling, embed
from codebrush.generation.wording import check_style
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack

BY = ("translator", "codes", "flow")
NOT_SAMPLING = ("upscale", "progress")  # options that do not change what is drawn


def uses_translator(pack: Pack, by: str | None, given: Mapping[str, Any]) -> bool:
    """Whether the pack's translator translates: if `by` says so, or is None and the pack has one.

    Raises:
        UsageError: if it does, but an option in `given` tunes how codes are drawn; or if `by` is not one of BY.
    """
    if by not in (None, *BY):
        raise UsageError(f"a translation is by {', '.join(BY[:-1])} or {BY[-1]}, not {by}")
    if by in ("codes", "flow") or (by is None and not pack.has("translator")):
        return False
    named = [name for name, value in given.items() if value is not None and name not in NOT_SAMPLING]
    checked_sampling({name: given[name] for name in named if name not in ("n", "seed", *FLOW_OPTIONS)})
    if given.get("n") == 1:
        named.remove("n")
    if named:
        raise UsageError(f"{named[0]} is for pictures that are drawn: leave it out, or translate by codes")
    return True


@torch.no_grad()
def translate_picture(pack: Pack, clip: CLIP, vqgan: VQGAN, edit: Edit) -> Result:
    """Translate the square in the picture's middle, at the pack's size; the score is CLIP's cosine with the source.

    Raises:
        PackError: if the pack has no translator.
        UsageError: if the translator does not know the style.
    """
    device = clip.log_scale.device
    model = pack.translator.to(device)
    styles = list(model.config.styles)
    check_style(edit.style, styles)
    canvas = whole_canvas(edit.picture)
    pixels = canvas.view(pack.image_size)[0][None].to(device)
    made = model(pixels, torch.tensor([styles.index(edit.style)], device=device))[0]
    picture = to_pil(made.clamp(0, 1))
    latent, codes = vqgan.quantize(vqgan.encode(to_tensor(picture)[None].to(device)))
    score = float((embed(clip, pack, [picture]) * embed(clip, pack, [edit.picture])).sum())
    manifest = translated_manifest(
        edit.to_entry(), score, picture.size, pack.hash_of("translator"), origin(pack, device)
    )
    picture = ground_of(edit, canvas, picture.width)(picture)
    return Result(picture, score, codes[0], latent[0], manifest)


def replay_translation(pack: Pack, clip: CLIP, vqgan: VQGAN, edit: Edit, manifest: Mapping[str, Any]) -> Result:
    """The picture of a manifest again; `edit` is the one in it. Raises PackError if another translator made it."""
    _, threads = read_index_and_threads(manifest, 1)
    check_origin(manifest, pack, clip.log_scale.device)
    check_translator(manifest, pack)
    with torch_threads(threads):
        return translate_picture(pack, clip, vqgan, edit)
