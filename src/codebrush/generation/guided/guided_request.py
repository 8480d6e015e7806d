"""What was asked of a guided run: prompt, seed and options, and the hashes of the files that the options name."""

import itertools
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from codebrush.data.decoding.images import read_picture
from codebrush.errors import ImageError, UsageError
from codebrush.files import file_sha256
from codebrush.generation.guided.guide_options import INITS, GuideOptions, under_present_names
from codebrush.generation.guided.initial_latents import check_init
from codebrush.generation.guided.option_values import split_weights
from codebrush.generation.latent_files import LATENTS
from codebrush.generation.options import DrawOptions
from codebrush.generation.sources import Sources
from codebrush.generation.transparent_ground import Transparency, check_transparency
from codebrush.models.pretrained import WEIGHTS_FILE
from codebrush.pack.pack import clip_folder
from codebrush.warned import warn

MaskFit = Literal["cover", "squeeze"]


KINDS = {"prompt": str, "n": int, "seed": int, "options": dict, "sampling": dict, "files": dict}  # of what is stored


@dataclass(frozen=True)
class GuidedRequest:
    """All that the pixels of a guided run depend on, beside the models. `files` maps named files to their sha256.

    `mask_fit` says how a mask is read: "cover" scales it until it covers the picture and crops it, as the pictures of
    init and target, and its transparent pixels are black; versions before 0.3 squeezed it, and those were white.
    `transparency` "kept" makes pictures transparent where the ground of a transparent start is: see
    `with_transparent_ground`.
    """

    prompt: str
    n: int
    seed: int
    options: GuideOptions
    sampling: dict[str, Any] = field(default_factory=dict)  # options of the code transformer if it draws the init
    files: dict[str, str] = field(default_factory=dict)
    mask_fit: MaskFit = "cover"
    transparency: Transparency = "kept"

    @property
    def start(self) -> Path | None:
        """The file of the picture that the run starts from; None if it starts from something else."""
        init = self.options.init
        return None if init in INITS or Path(init).suffix.lower() == LATENTS else Path(init)

    def to_json(self) -> dict[str, Any]:
        """The request as plain values, without options that have their default."""
        defaults = GuideOptions()
        options = {name: value for name, value in asdict(self.options).items() if value != getattr(defaults, name)}
        fit = {"mask_fit": self.mask_fit} if self.options.mask and self.mask_fit == "cover" else {}
        kept = {"transparency": "kept"} if self.start is not None and self.transparency == "kept" else {}
        return {
            "prompt": self.prompt, "n": self.n, "seed": self.seed,
            "options": options, "sampling": self.sampling, "files": self.files, **fit, **kept,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "GuidedRequest":
        """The request that `to_json` wrote.

        Raises:
            UsageError: if an option is unknown or out of range.
            KeyError, TypeError, ValueError: if it is damaged.
        """
        for name, kind in KINDS.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"its {name} is {values[name]!r}")
        if drawn := {name: value for name, value in values["sampling"].items() if name != "scorer"}:
            DrawOptions(n=values["n"], seed=values["seed"], **drawn)
        known = {option.name for option in fields(GuideOptions)}
        given = under_present_names(values["options"])
        unknown = set(given) - known
        if unknown:
            raise UsageError(f"guidance has no option {', '.join(sorted(unknown))}: upgrade codebrush to read it")
        options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        kept = {name: values[name] for name in ("prompt", "n", "seed", "sampling", "files")}
        fit = values.get("mask_fit", "squeeze")
        if fit not in get_args(MaskFit):
            raise UsageError(f"mask_fit is {fit!r}, which this version does not know: upgrade codebrush to read it")
        request = cls(options=GuideOptions(**options), mask_fit=fit, **kept)
        if request.start is None:
            return request
        transparency = values.get("transparency", "dropped")
        check_transparency(transparency)
        return replace(request, transparency=transparency)


def with_files(request: GuidedRequest) -> GuidedRequest:
    """The request with absolute paths and the hashes of its files.

    Raises:
        UsageError: if `init` names no file.
        ImageError: if a file cannot be read.
    """
    o = request.options

    def absolute(text: str) -> str:
        name = split_weights(text)[0]
        return str(Path(name).absolute()) + text[len(name) :]

    changes: dict[str, Any] = {
        "image_prompt": tuple(map(absolute, o.image_prompt)), "target": tuple(map(absolute, o.target)),
        "other_clip": tuple(absolute(text) if Path(split_weights(text)[0]).is_dir() else text for text in o.other_clip),
    }  # fmt: skip
    if o.mask:
        changes["mask"] = str(Path(o.mask).absolute())
    if o.init not in INITS:
        check_init(o.init)
        changes["init"] = str(Path(o.init).absolute())
    if o.palette and Path(o.palette).is_file():
        changes["palette"] = str(Path(o.palette).absolute())
    options = replace(o, **changes)
    return replace(request, options=options, files={name: _sha256(name) for name in _named_files(options)})


def warn_of_shapes(request: GuidedRequest) -> None:
    """Warn if the pictures that start, mask and target name differ in shape, as each is cropped on its own.

    Raises:
        ImageError: if one cannot be read.
    """
    options = request.options
    files = [] if request.start is None else [options.init]
    files += [options.mask] if options.mask else []
    files += [split_weights(text)[0] for text in options.target]
    sizes = {name: read_picture(name, wanted=1).size for name in files}
    if any(_differ(one, other) for one, other in itertools.combinations(sizes.values(), 2)):
        named = ", ".join(f"{Path(name).name} {width} x {height}" for name, (width, height) in sizes.items())
        warn(
            f"start, mask and target differ in shape ({named}): each is scaled until it covers the picture and loses "
            "its ends, so they may not match; make them of one shape"
        )


def _differ(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are of different shapes, by more than the rounding of one pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) > max(*one, *other)


def check_files(request: GuidedRequest) -> None:
    """Raise an ImageError if a file of the request is no longer what it was."""
    for name, digest in request.files.items():
        if _sha256(name) != digest:
            raise ImageError(f"{name} has changed since the run began: put the old one back, or begin a new run")


def sourced(request: GuidedRequest, sources: Sources) -> GuidedRequest:
    """The request of a manifest with its files where they are now.

    Raises:
        ImageError: if one is missing or has changed, or may not be opened.
    """
    if sources.named and not sources.given:
        check_files(request)
        return request
    o = request.options
    if o.other_clip and not sources.named:
        raise ImageError(f"made with another CLIP, {o.other_clip[0]}, which is not part of the manifest")
    names = _named_files(o)
    names += [o.palette] if o.palette and not o.palette.startswith("#") and o.palette not in names else []
    places = {name: sources.file(name, request.files.get(name)) for name in names}

    def place(text: str) -> str:
        name = split_weights(text)[0]
        return places[name] + text[len(name) :]

    changes: dict[str, Any] = {name: tuple(map(place, getattr(o, name))) for name in ("image_prompt", "target")}
    changes |= {name: places[given] for name in ("mask", "init", "palette") if (given := getattr(o, name)) in places}
    files = {places[name]: digest for name, digest in request.files.items() if name in places}
    return replace(request, options=replace(o, **changes), files=files)


def _named_files(options: GuideOptions) -> list[str]:
    """The files that the options name, each once; of another CLIP, its weights."""
    files = [str(clip_folder(split_weights(text)[0]) / WEIGHTS_FILE) for text in options.other_clip]
    files += [split_weights(text)[0] for text in (*options.image_prompt, *options.target)]
    files += [options.mask] if options.mask else []
    files += [options.init] if options.init not in INITS else []
    files += [options.palette] if options.palette and Path(options.palette).is_absolute() else []
    return list(dict.fromkeys(files))


def _sha256(name: str) -> str:
    try:
        return file_sha256(name)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error
