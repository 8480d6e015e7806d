"""The methods by which pictures are made, in one table: the options of each, how it draws, and how a replay repeats it.

`Codebrush.generate` and `Codebrush.replay` look methods up here.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from codebrush.errors import ImageError, UsageError
from codebrush.generation.editing.edit_options import refuse_code_filters
from codebrush.generation.editing.editing import EDITS, Edit, prepare_edit
from codebrush.generation.editing.translation import replay_translation
from codebrush.generation.editing.upscaling import DRAWN, ENLARGED, SCALES, not_replayed
from codebrush.generation.guided.flow_guidance import (
    FlowGuidance,
    asked_guidance,
    guided_drawing,
    guided_edit_drawing,
    read_guidance,
)
from codebrush.generation.guided.guide_options import (
    FLOW_GUIDING,
    FORMER_NAMES,
    GuideOptions,
    guide_options,
    usual_preset,
)
from codebrush.generation.guided.guided_request import GuidedRequest, sourced, warn_of_shapes, with_files
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.guided.run.guided_run import GuidedRun
from codebrush.generation.manifest import (
    before_upscaling,
    by_flow,
    by_retrieval,
    by_translator,
    check_retrieval,
    damage_reported,
    read_index_and_threads,
    read_plan,
    read_retrieval,
    read_upscalings,
)
from codebrush.generation.options import (
    FLOW_OPTIONS,
    SAMPLING,
    DrawOptions,
    FlowSettings,
    did_you_mean,
)
from codebrush.generation.origin import check_origin, torch_threads
from codebrush.generation.result import Result
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.many_prompts import sample_many
from codebrush.generation.sampling.painters import CodePainter, draws, usual_painter
from codebrush.generation.sampling.retrieval import Retrieval, prepare_retrieval
from codebrush.generation.sampling.sampler import Sampler, checked_sampling, draw_options
from codebrush.generation.sampling.sizes import checked_size
from codebrush.generation.sources import Sources, named_as_before
from codebrush.loaded_pack import LoadedPack
from codebrush.pack.pack import Pack
from codebrush.progress import Preview, Progress, parts
from codebrush.text.prompts import parse_prompt

# options of every method
COMMON = ("n", "seed", "style", "negative_prompt", "method", "upscale", "progress", "preview")
RETRIEVAL = frozenset(option.name for option in fields(Retrieval))


@dataclass(frozen=True)
class Call:
    """One call of `Codebrush.generate`. `sampling` holds the options in SAMPLING, and `options` those of the method."""

    prompt: str
    n: int
    seed: int
    sampling: dict[str, Any]
    options: dict[str, Any]
    progress: Progress | None

    def draw_options(self, loaded: LoadedPack, flow: FlowSettings | None = None) -> DrawOptions:
        """The options with the pack's defaults. Raises UsageError for a size that the pack cannot draw."""
        given = {"n": self.n, "seed": self.seed, "size": self.options.get("size"), "flow": flow}
        if flow is None:
            given["steps"] = self.options.get("steps")
        weights = loaded.weights_of("sample" if flow is None else "flow")
        options = draw_options(loaded.pack, {**self.sampling, **given}, weights)
        if options.size:
            checked_size(loaded.pack, options.size, "transformer" if flow is None else "flow")
        return options


@dataclass(frozen=True)
class Method:
    """One method of `Codebrush.generate`: the names of its own options, and the function that draws.

    `together` draws several calls, each as if alone, in fewer batches where that is faster, and shows them meanwhile;
    None: they are drawn one after the other.
    """

    options: frozenset[str]
    generate: Callable[[LoadedPack, Call], list[Result]]
    together: Callable[[LoadedPack, Sequence[Call], Progress | None, Preview | None], Iterable[list[Result]]] | None = (
        None
    )


def _sample(loaded: LoadedPack, call: Call) -> list[Result]:
    options = call.draw_options(loaded)  # checked before any model is loaded
    return loaded.sampler.sample(call.prompt, options, call.progress)


def _sample_together(
    loaded: LoadedPack, calls: Sequence[Call], progress: Progress | None, preview: Preview | None
) -> list[list[Result]]:
    options = [call.draw_options(loaded) for call in calls]
    sampler = loaded.sampler
    assert isinstance(sampler.painter, CodePainter)
    return sample_many(sampler, sampler.painter, [call.prompt for call in calls], options, progress, preview)


def _replay_sample(loaded: LoadedPack, manifest: Mapping[str, Any], _: Sources, progress: Progress | None) -> Result:
    return loaded.sampler.replay(manifest, progress=progress)


def _retrieve(loaded: LoadedPack, call: Call) -> list[Result]:
    if usual_painter(loaded.pack) == "flow":
        return _flow(loaded, replace(call, options={"prior": Retrieval().prior, **call.options}))
    how, options = Retrieval(**_given(call, RETRIEVAL)), call.draw_options(loaded)
    return loaded.sampler.best(_retrieval(loaded, loaded.sampler, call.prompt, options, how), call.progress)


def _replay_retrieve(
    loaded: LoadedPack, manifest: Mapping[str, Any], sources: Sources, progress: Progress | None
) -> Result:
    prepare = partial(_looked_up_again, loaded, loaded.sampler, manifest, sources)
    return loaded.sampler.replay(manifest, prepare, progress)


def _looked_up_again(
    loaded: LoadedPack, sampler: Sampler, manifest: Mapping[str, Any], sources: Sources, options: DrawOptions
) -> Drawing:
    """The drawing of a manifest. Raises ImageError if the embedding would be made of other pictures than then."""
    with damage_reported():
        how = Retrieval(**read_retrieval(manifest))
    if how.bank and not sources.named:
        raise ImageError(f"made with the database {how.bank}, which is not part of the manifest")
    drawing = _retrieval(loaded, sampler, manifest["prompt"], options, how)
    check_retrieval(drawing.entry, manifest)
    return drawing


def _flow(loaded: LoadedPack, call: Call) -> list[Result]:
    return loaded.flow_sampler.best(_flow_drawing(loaded, call), call.progress)


def _flow_one_by_one(
    loaded: LoadedPack, calls: Sequence[Call], _: Progress | None, preview: Preview | None
) -> Iterator[list[Result]]:
    """The pictures of several calls, one call after the other."""
    for number, call in enumerate(calls):
        drawing = loaded.flow_sampler.shown(_flow_drawing(loaded, call), preview, number)
        yield loaded.flow_sampler.best(drawing, call.progress)


def _flow_drawing(loaded: LoadedPack, call: Call) -> Drawing:
    settings, lookup = FlowSettings(**_given(call, FLOW_OPTIONS)), _given(call, RETRIEVAL)
    refuse_code_filters(loaded.pack, call.sampling)
    options, guidance = call.draw_options(loaded, settings), asked_guidance(loaded.pack, call.options)
    sampler = loaded.flow_sampler
    if lookup:
        drawing = _retrieval(loaded, sampler, call.prompt, options, Retrieval(**lookup))
    else:
        drawing = sampler.prepare(call.prompt, options)
    return drawing if guidance is None else guided_drawing(drawing, loaded.guidance_models(), guidance)


def _replay_flow(
    loaded: LoadedPack, manifest: Mapping[str, Any], sources: Sources, progress: Progress | None
) -> Result:
    sampler, guidance = loaded.flow_sampler, read_guidance(manifest, sources)

    def prepare(options: DrawOptions) -> Drawing:
        if by_retrieval(manifest):
            drawing = _looked_up_again(loaded, sampler, manifest, sources, options)
        else:
            drawing = sampler.prepare(manifest["prompt"], options)
        return drawing if guidance is None else guided_drawing(drawing, loaded.guidance_models(), guidance)

    return sampler.replay(manifest, prepare, progress)


def _given(call: Call, names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in call.options.items() if name in names}


def _retrieval(loaded: LoadedPack, sampler: Sampler, prompt: str, options: DrawOptions, how: Retrieval) -> Drawing:
    nearest = prior = None
    if how.bank:
        from codebrush.search.bank import open_bank

        nearest = open_bank(how.bank, loaded.pack)
    elif how.prior == "retrieval":
        nearest = loaded.on_device(loaded.pack.bank).nearest
    elif how.prior == "mlp":
        prior = loaded.on_device(loaded.pack.prior)
    return prepare_retrieval(sampler, prompt, options, how, nearest, prior)


def _guide(loaded: LoadedPack, call: Call) -> list[Result]:
    run = guided_run(loaded, call.prompt, call.n, call.seed, sampling=call.sampling, **call.options)
    for step in run:
        if call.progress is not None:
            done = step.steps * step.pictures.start + step.step * len(step.pictures)
            call.progress(done, step.steps * call.n)
    return run.results


def guided_run(
    loaded: LoadedPack,
    prompt: str,
    n: int,
    seed: int,
    folder: str | Path | None = None,
    preset: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    frames: int = 0,
    **options: Any,
) -> GuidedRun:
    """A new guided run that stores about so many `frames` of each picture at least; see `Codebrush.guide`."""
    if unknown := [name for name in options if name not in METHODS["guide"].options]:
        known = {*COMMON, "sampling", *METHODS["guide"].options}
        raise UsageError(f"guidance has no option {unknown[0]}{did_you_mean(unknown[0], known)}")
    own = loaded.pack.info.get("guidance", {})
    if preset is None:
        own = {**usual_preset(options.get("init") or own.get("init"), draws=draws(loaded.pack)), **own}
    chosen = guide_options(options, preset, own)
    if chosen.keep == "best" and not loaded.pack.has("scorer"):
        if options.get("keep"):
            raise loaded.pack.missing("scorer")
        chosen = replace(chosen, keep="last")
    if frames and chosen.show_every:
        chosen = replace(chosen, show_every=min(chosen.show_every, max(1, chosen.steps // frames)))
    parse_prompt(prompt)
    if chosen.size is not None:
        checked_size(loaded.pack, chosen.size, None)
    tuning = checked_sampling(sampling or {}, "the drawing that guidance starts from")
    flow = FlowSettings() if usual_painter(loaded.pack) == "flow" else None
    weights = loaded.weights_of("sample" if flow is None else "flow")
    drawing = draw_options(loaded.pack, {**tuning, "n": n, "seed": seed, "flow": flow}, weights)
    if sampling and chosen.init != "sample":
        raise UsageError(f"{next(iter(sampling))} is for drawing codes: leave it out, or start from init sample")
    if flow is not None:
        refuse_code_filters(loaded.pack, tuning)
    drawn = {name: value for name, value in drawing.to_dict().items() if name != "n"}
    if loaded.scorer is not None:
        drawn["scorer"] = loaded.scorer.digest
    request = GuidedRequest(prompt, drawing.n, drawing.seed, chosen, drawn if chosen.init == "sample" else {})
    request = with_files(request)
    warn_of_shapes(request)
    return GuidedRun(request, loaded.guidance_models(), folder)


def _replay_guide(
    loaded: LoadedPack, manifest: Mapping[str, Any], sources: Sources, progress: Progress | None
) -> Result:
    with damage_reported():
        request, plan = GuidedRequest.from_json(dict(manifest)), MemoryPlan.from_json(read_plan(manifest))
        steps = operator.index(manifest["steps"]) if request.options.keep == "best" else None
    index, threads = read_index_and_threads(manifest, request.n)
    check_origin(manifest, loaded.pack, loaded.device)
    with damage_reported():
        request = sourced(request, sources)
    with torch_threads(threads):
        return GuidedRun(request, loaded.guidance_models()).only(index, plan, steps, progress)


def edit_guidance(pack: Pack, painter: str, scale: float | None) -> FlowGuidance | None:
    """CLIP's guidance of an edit by one of PAINTERS; None if it is off. Raises UsageError if codes are drawn."""
    if scale is not None and painter != "flow":
        raise UsageError(f"clip_guidance is an option of the method flow, not of {painter}")
    return asked_guidance(pack, {"clip_guidance": scale})


def edit_drawing(
    loaded: LoadedPack, sampler: Sampler, edit: Edit, options: DrawOptions, guidance: FlowGuidance | None
) -> Drawing:
    """The drawing of an edit, guided by CLIP if `guidance` is given. Raises as `prepare_edit`."""
    drawing = prepare_edit(sampler, edit, options)
    return drawing if guidance is None else guided_edit_drawing(drawing, loaded.guidance_models(), guidance)


def _replay_edit(
    loaded: LoadedPack, manifest: Mapping[str, Any], sources: Sources, progress: Progress | None
) -> Result:
    with damage_reported():
        edit = Edit.from_manifest(manifest, sources)
    if by_translator(manifest):
        return replay_translation(loaded.pack, loaded.clip, loaded.vqgan, edit, manifest)
    with damage_reported():
        sampler = loaded.painter_sampler("flow" if by_flow(manifest) else "sample")
    guidance = read_guidance(manifest, sources)
    return sampler.replay(manifest, lambda options: edit_drawing(loaded, sampler, edit, options, guidance), progress)


METHODS: Mapping[str, Method] = {
    "sample": Method(frozenset(("size", "steps")), _sample, _sample_together),
    "flow": Method(
        frozenset(("size", *FLOW_OPTIONS, *RETRIEVAL, "clip_guidance", *FLOW_GUIDING)), _flow, _flow_one_by_one
    ),
    "retrieve": Method(frozenset(("size", "steps", *RETRIEVAL)), _retrieve),
    "guide": Method(
        frozenset(("preset", "folder", *FORMER_NAMES, *(option.name for option in fields(GuideOptions)))), _guide
    ),
}
REPLAYS: Mapping[str, Callable[[LoadedPack, Mapping[str, Any], Sources, Progress | None], Result]] = {
    "sample": _replay_sample,
    "flow": _replay_flow,
    "retrieve": _replay_retrieve,
    "guide": _replay_guide,
    **dict.fromkeys(EDITS, _replay_edit),
}


def find_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method called `name`. Raises UsageError if there is none, or one of `options` is not its own."""
    if name not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, not {name}")
    for option in options:
        if option in METHODS[name].options:
            continue
        owners = [other for other, method in METHODS.items() if option in method.options]
        if owners:
            of = f"the method {owners[0]}" if len(owners) == 1 else f"the methods {' and '.join(owners)}"
            raise UsageError(f"{option} is an option of {of}, not of {name}")
        known = {*COMMON, *SAMPLING, *METHODS[name].options}
        raise UsageError(f"generate has no option {option}{did_you_mean(option, known)}")
    return METHODS[name]


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """The seed of each of so many prompts. Raises UsageError if a list of them has another length."""
    if not isinstance(seed, list | tuple):
        return [seed] * prompts  # pyright: ignore[reportReturnType]
    if len(seed) != prompts:
        raise UsageError(f"give one seed, or one for each prompt: {prompts} prompts, but {len(seed)} seeds")
    return list(seed)


def check_method(manifest: Mapping[str, Any]) -> None:
    """Raises ImageError if the picture was made in a way that cannot be repeated from its manifest."""
    method = manifest.get("method")
    if method == "upscale":
        raise not_replayed(manifest)
    if not isinstance(method, str) or method not in REPLAYS:
        raise ImageError(f"the picture was made by the method {method!r}, which cannot be replayed")


def replayed(
    loaded: LoadedPack, manifest: Mapping[str, Any], sources: Sources, progress: Progress | None = None
) -> Result:
    """The picture of a manifest again; see `Codebrush.replay`."""
    check_method(manifest)
    if read_upscalings(manifest, loaded.pack, SCALES):
        drawing, enlarging = parts(progress, (DRAWN, ENLARGED))
        drawn = replayed(loaded, before_upscaling(manifest), sources, drawing)
        return loaded.enlarger.replay(drawn, manifest, enlarging)
    result = REPLAYS[manifest["method"]](loaded, manifest, sources, progress)
    return replace(result, manifest=named_as_before(result.manifest, manifest)) if sources.given else result
