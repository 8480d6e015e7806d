"""What a picture's manifest holds: every key, how it is written, and how a replay reads it.

The manifest is a JSON object in the PNG's text chunk "codebrush". Keys of some methods only name these:

method      sample, retrieve, guide, vary, edit, inpaint, translate, upscale or interpolate
retrieval   retrieve: prior, neighbours, bank (its path, "" for the pack's own); found, the name and cosine of each
            neighbour; hash, the sha256 of the pack's bank or prior
clip_guidance   flow, or an edit by one: scale, options, files and plan, the last three as of guide
edit        vary, edit, inpaint, translate: prompt; picture and mask, each as file and sha256; box, extend, strength
            or style; and transparency, "kept" if the ground of a transparent picture is transparent in the result
prompt      as typed; "" if there was none
n           guide: how many pictures the run makes
seed        of the run
index       the picture draws from the random stream of (seed, index)
options     `DrawOptions`; guide: those of `GuideOptions` that are not as by default
sampling    guide: `DrawOptions` of the drawing that it starts from
mask_fit    guide: "cover" if the mask is scaled until it covers the picture, and cropped; left out: it is squeezed
files       guide, interpolate: the sha256 of each file that the options or the keys name
transparency   guide: "kept" if the picture starts from one, and is transparent where the ground of that is
clip_score  CLIP's cosine with the prompt, -1 to 1; of a guided picture it says little, as guidance raised it
scorer      score, the cosine by the pack's scorer, which took no part; verdict, what it means
size        width and height in pixels
steps       guide: how many were taken
plan        guide: how the work was divided to fit into memory
events      guide: what happened on the way, such as a stop without progress
translator  translate, by the pack's translator: the sha256 of its files
pack        name, source (a name, folder or hub id) and hash (sha256 of the members that draw)
versions    of codebrush, torch, numpy and python
device      as far as rounding depends on it
threads     of PyTorch on a CPU
source      upscale: the name of a file that did not say how it was made
upscaled    one entry for each enlargement: scale, pack (its name), upscaler (sha256 of its files)
keys, through, frames   interpolate: its arguments
"""

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.options import DrawOptions
from codebrush.generation.origin import versions
from codebrush.pack.pack import Pack

MOST_THREADS = 1024
# Keys that are no options: what came of the picture, and what it depends on beside them; and such keys in its parts.
FACTS = {
    "method", "prompt", "index", "clip_score", "scorer", "size", "steps", "plan", "events", "translator", "pack",
    "versions", "device", "threads", "source", "files", "mask_fit", "transparency", "upscaled", "keys",
}  # fmt: skip
FACTS_WITHIN = {"found", "hash", "picture", "mask", "prompt", "scorer", "transparency", "weights"}
SAMPLED: Mapping[str, Any] = {"method": "sample"}
_UPSCALED = "upscaled"
_KINDS = {"prompt": str, "pack": Mapping, "versions": Mapping}


# --- Writing. The order of the keys is part of the format: the same picture has the same bytes.


def retrieval_entry(
    method: str,
    prior: str,
    neighbours: int,
    bank: str,
    found: Sequence[tuple[str, float]] | None,
    digest: str | None,
) -> dict[str, Any]:
    """The method and details of a picture drawn from an embedding that was looked up: `found` are names and cosines."""
    details: dict[str, Any] = {"prior": prior, "neighbours": neighbours, "bank": bank}
    if found is not None:
        details["found"] = [{"name": name, "cosine": cosine} for name, cosine in found]
    if digest is not None:
        details["hash"] = digest
    return {"method": method, "retrieval": details}


def edit_entry(
    kind: str,
    prompt: str,
    picture: Mapping[str, str],
    mask: Mapping[str, str] | None = None,
    *,
    box: tuple[int, int, int, int] | None = None,
    extend: Mapping[str, int] | None = None,
    style: str = "",
    strength: float | None = None,
    transparency: str = "",
) -> dict[str, Any]:
    """The method and details of an edit; what is empty is left out. See `picture_entry` for `picture` and `mask`."""
    details = {
        "picture": picture, "mask": mask, "box": box, "extend": extend, "style": style, "strength": strength,
        "transparency": transparency,
    }  # fmt: skip
    return {"method": kind, "edit": {"prompt": prompt, **{name: value for name, value in details.items() if value}}}


def picture_entry(digest: str, file: str | None = None) -> dict[str, str]:
    """The entry of a picture that another was made from: its sha256, and its absolute path if it is a file."""
    return {"sha256": digest} if file is None else {"file": file, "sha256": digest}


def drawn_manifest(
    entry: Mapping[str, Any],
    prompt: str,
    options: DrawOptions,
    index: int,
    score: float,
    size: Sequence[int],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a picture that the code transformer drew.

    `entry` is its method and details, `origin` what the function `origin` returns.
    """
    return {
        **entry,
        "prompt": prompt,
        "seed": options.seed,
        "index": index,
        "options": options.to_dict(),
        "clip_score": score,
        "size": list(size),
        **origin,
    }


def judged_manifest(manifest: Mapping[str, Any], score: float, verdict: str | None) -> dict[str, Any]:
    """The manifest of a picture with what the pack's scorer says of it."""
    return {**manifest, "scorer": {"score": score, "verdict": verdict}}


def translated_manifest(
    entry: Mapping[str, Any], score: float, size: Sequence[int], translator: str, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a picture that a translator made, without any seed; `score` is CLIP's cosine with the source."""
    return {
        **entry,
        "prompt": "",
        "seed": 0,
        "index": 0,
        "clip_score": score,
        "size": list(size),
        "translator": translator,
        **origin,
    }


def guided_manifest(
    request: Mapping[str, Any],
    index: int,
    score: float,
    size: Sequence[int],
    steps: int,
    plan: Mapping[str, Any],
    events: Sequence[str],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a guided picture.

    `request` holds prompt, n, seed, options, sampling and files, as run.json does.
    """
    return {
        "method": "guide",
        **request,
        "index": index,
        "clip_score": score,
        "size": list(size),
        "steps": steps,
        "plan": plan,
        "events": events,
        **origin,
    }


def interpolated_manifest(
    keys: Sequence[str],
    through: str,
    frames: int,
    seed: int,
    index: int,
    files: Mapping[str, str],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of picture `index` of an interpolation, with the command line's arguments. It cannot be replayed.

    `files` are the sha256 of those of the keys that are files, `origin` what the function `origin` returns.
    """
    return {
        "method": "interpolate",
        "keys": keys,
        "through": through,
        "frames": frames,
        "seed": seed,
        "index": index,
        "files": files,
        **origin,
    }


def foreign_manifest(file: str) -> dict[str, Any]:
    """The manifest of a picture to enlarge whose `file` (its name) does not say how it was made."""
    return {"method": "upscale", "source": file, "versions": versions()}


def resized_manifest(manifest: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """The manifest of the same picture at another size."""
    return {**manifest, "size": list(size)}


def upscaled_manifest(manifest: Mapping[str, Any], scale: int, size: Sequence[int], pack: Pack) -> dict[str, Any]:
    """The manifest of a picture that the upscaler of `pack` enlarged to `size`; `manifest` is the one it had before.

    Raises:
        ImageError: if the manifest is damaged.
    """
    done = manifest.get(_UPSCALED, [])
    if not isinstance(done, list):
        raise damaged(TypeError(f"{_UPSCALED} is not a list"))
    step = {"scale": scale, "pack": pack.name, "upscaler": pack.hash_of("upscaler")}
    return {**resized_manifest(manifest, size), _UPSCALED: [*done, step]}


# --- Reading


@dataclass(frozen=True)
class Drawn:
    """What a replay needs to know of a picture that the code transformer drew."""

    prompt: str
    options: DrawOptions
    index: int
    threads: int


def read_drawn(manifest: Mapping[str, Any]) -> Drawn:
    """The drawing that a manifest describes. Raises ImageError if the manifest is damaged."""
    with damage_reported():
        options = DrawOptions(seed=manifest["seed"], **manifest["options"])
    index, threads = read_index_and_threads(manifest, options.rerank)
    return Drawn(manifest["prompt"], options, index, threads)


def read_index_and_threads(manifest: Mapping[str, Any], pictures: int) -> tuple[int, int]:
    """The picture's index, below `pictures`, and its number of threads.

    Raises:
        ImageError: if one of them, or a field that `check_origin` reads, is damaged.
    """
    with damage_reported():
        index, threads = operator.index(manifest["index"]), operator.index(manifest["threads"])
        if index not in range(pictures) or threads not in range(1, MOST_THREADS + 1):
            raise ValueError(f"index {index}, threads {threads}")
        if not all(isinstance(manifest[name], kind) for name, kind in _KINDS.items()):
            raise TypeError("a field of the wrong kind")
    return index, threads


def read_edit(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `edit_entry` that a manifest was written with."""
    details = dict(manifest["edit"])
    if "box" in details:
        details["box"] = tuple(details["box"])
    return {"kind": manifest["method"], **details}


def read_retrieval(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The prior, neighbours and bank that a manifest was written with."""
    return {name: manifest["retrieval"][name] for name in ("prior", "neighbours", "bank")}


def by_retrieval(manifest: Mapping[str, Any]) -> bool:
    """Whether a picture was drawn from an embedding that was looked up or predicted."""
    return "retrieval" in manifest


def check_retrieval(entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Raises ImageError if a replay, whose `retrieval_entry` is given, found other pictures than `manifest` says."""
    now, then = entry["retrieval"], manifest["retrieval"]
    names = [[near["name"] for near in found.get("found", [])] for found in (now, then)]
    if names[0] != names[1] or now.get("hash") != then.get("hash"):
        where = now["bank"] or f"the pack's {'prior' if now['prior'] == 'mlp' else 'bank'}"
        raise ImageError(f"{where} has changed since the picture was made: put the old one back")


def read_plan(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The memory plan of a guided picture."""
    return manifest["plan"]


def read_judgement(manifest: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """The score and the verdict of the pack's scorer, each None if the manifest has none."""
    found = manifest.get("scorer", {})
    return found.get("score"), found.get("verdict")


def drawn_index(manifest: Mapping[str, Any]) -> int:
    """The number of a candidate, which chooses its random stream."""
    return manifest["index"]


def by_flow(manifest: Mapping[str, Any]) -> bool:
    """Whether a flow transformer drew a picture, and not a code transformer."""
    return "flow" in manifest["options"]


def read_clip_guidance(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How CLIP guided the flow that drew a picture; None if it did not."""
    return manifest.get("clip_guidance")


def by_translator(manifest: Mapping[str, Any]) -> bool:
    """Whether a translation was made by a translator, and not drawn."""
    return "translator" in manifest


def check_translator(manifest: Mapping[str, Any], pack: Pack) -> None:
    """Raises PackError if another translator than that of `pack` made the picture."""
    if not pack.has("translator") or manifest["translator"] != pack.hash_of("translator"):
        raise PackError("made by another translator than this pack's: open the pack it was made with")


def before_upscaling(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the picture before it was enlarged."""
    return {name: value for name, value in manifest.items() if name != _UPSCALED}


def read_upscalings(manifest: Mapping[str, Any], pack: Pack, scales: Collection[int]) -> list[int]:
    """The scales by which a picture was enlarged, one after another.

    Raises:
        ImageError: if the manifest is damaged, or one of them is not among `scales`.
        PackError: if another upscaler than that of `pack` did it.
    """
    with damage_reported():
        steps = [(step["scale"], str(step["upscaler"])) for step in manifest.get(_UPSCALED, [])]
        if not all(type(scale) is int and scale in scales for scale, _ in steps):
            raise ValueError(f"a scale that is not one of {tuple(scales)}")
    for _, theirs in steps:
        if not pack.has("upscaler") or theirs != pack.hash_of("upscaler"):
            raise PackError(f"enlarged by an upscaler ({theirs[:12]}) that the pack '{pack.name}' does not have")
    return [scale for scale, _ in steps]


@contextmanager
def damage_reported() -> Iterator[None]:
    """A context in which the errors of reading a damaged manifest become one ImageError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
        raise damaged(error) from error


def damaged(error: Exception) -> ImageError:
    """The error line for a manifest that cannot be read because of `error`."""
    return ImageError(f"the picture's manifest is damaged ({type(error).__name__}: {error})")
