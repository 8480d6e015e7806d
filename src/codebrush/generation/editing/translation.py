"""A picture and a pack with a translator in; the picture in another style, and that again from its manifest, out."""

from collections.abc import Mapping
from typing import Any

import torch

from codebrush.data.images import to_pil, to_tensor
from codebrush.errors import PackError, UsageError
from codebrush.generation.editing.editing import Edit, check_style
from codebrush.generation.manifest import check_origin, origin, read_origin, torch_threads
from codebrush.generation.result import Result
from codebrush.generation.sampling.canvas import whole_canvas
from codebrush.generation.sampling.sampler import checked_sampling, embed
from codebrush.models.clip import CLIP
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import Pack

WAYS = ("translator", "codes")
OTHER_OPTIONS = ("upscale", "progress")  # that do not shape what is drawn


def uses_translator(pack: Pack, by: str | None, given: Mapping[str, Any]) -> bool:
    """Whether a translation is the translator's, as it is where the pack has one, unless it is to be `by` "codes".

    Raises UsageError for options among `given` that a translator, which draws nothing, does not heed.
    """
    if by not in (None, *WAYS):
        raise UsageError(f"a translation is by {' or '.join(WAYS)}, not {by}")
    if by == "codes" or (by is None and not pack.has("translator")):
        return False
    named = [name for name, value in given.items() if value is not None and name not in OTHER_OPTIONS]
    checked_sampling({name: given[name] for name in named if name not in ("n", "seed")})
    if given.get("n") == 1:
        named.remove("n")
    if named:
        raise UsageError(f"{named[0]} is for pictures that are drawn: leave it out, or translate by codes")
    return True


@torch.no_grad()
def translated(pack: Pack, clip: CLIP, vqgan: VQGAN, edit: Edit) -> Result:
    """The square in the picture's middle at the pack's size as its translator makes it.

    Its score is CLIP's cosine with the source. Raises UsageError for a style that the translator does not know.
    """
    device = clip.log_scale.device
    model = pack.translator.to(device)
    styles = list(model.config.styles)
    check_style(edit.style, styles)
    pixels = whole_canvas(edit.picture).view(pack.image_size)[0][None].to(device)
    made = model(pixels, torch.tensor([styles.index(edit.style)], device=device))[0]
    picture = to_pil(made.clamp(0, 1))
    latent, codes = vqgan.quantize(vqgan.encode(to_tensor(picture)[None].to(device)))
    score = float((embed(clip, pack, [picture]) * embed(clip, pack, [edit.picture])).sum())
    manifest = {
        **edit.to_json(),
        "prompt": "",
        "seed": 0,
        "index": 0,
        "clip_score": score,
        "size": list(picture.size),
        "translator": pack.hash_of("translator"),
        **origin(pack, device),
    }
    return Result(picture, score, codes[0], latent[0], manifest)


def translated_again(pack: Pack, clip: CLIP, vqgan: VQGAN, edit: Edit, manifest: Mapping[str, Any]) -> Result:
    """The picture of a translator's manifest. Raises PackError where another translator made it."""
    _, threads = read_origin(manifest, 1)
    check_origin(manifest, pack, clip.log_scale.device)
    if not pack.has("translator") or manifest["translator"] != pack.hash_of("translator"):
        raise PackError("made by another translator than this pack's: open the pack that it was made with")
    with torch_threads(threads):
        return translated(pack, clip, vqgan, edit)
