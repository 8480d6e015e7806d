"""CLIP guides a flow: at each step its gradient on the clean picture that the flow predicts bends the velocity.

The predicted latent is decoded and seen by CLIP in cutouts, as in guidance of a latent; the flow's own network needs no
backward pass. CLIP-guided diffusion (Crowson 2021), on the predicted clean picture as in Bansal et al. 2023, eq. 6.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from codebrush.errors import CodebrushError, UsageError
from codebrush.generation.guided.guidance import Guidance
from codebrush.generation.guided.guidance_state import State
from codebrush.generation.guided.guide_options import (
    FLOW_GUIDING,
    GuideOptions,
    guide_options,
)
from codebrush.generation.guided.guided_batch import (
    GuidanceModels,
    GuidedBatch,
    GuidingCLIP,
    make_batch,
    picture_size,
)
from codebrush.generation.guided.guided_request import GuidedRequest, sourced, with_files
from codebrush.generation.guided.latents import make_latent
from codebrush.generation.guided.losses.prompt_loss import NO_STOP, PromptEmbeddings
from codebrush.generation.guided.memory.fitting import plan_memory
from codebrush.generation.guided.memory.plan import MemoryPlan
from codebrush.generation.manifest import damage_reported, read_clip_guidance
from codebrush.generation.options import checked_number
from codebrush.generation.sampling.drawing import Drawing
from codebrush.generation.sampling.flow import Lead
from codebrush.generation.sources import Sources
from codebrush.pack.pack import Pack

MOST = 100.0  # scale


@dataclass(frozen=True)
class FlowGuidance:
    """How CLIP guides a flow.

    At each step CLIP pulls the predicted clean latent by `scale` times the time (1 to 0) standard deviations, whatever
    the length of its gradient. `options` are those of guidance in FLOW_GUIDING, for drawings of a prompt; `files` are
    the sha256 of those that they name. `plan` None is what fits into memory.

    Raises:
        UsageError: if the scale is out of its range.
    """

    scale: float
    options: GuideOptions = field(default_factory=GuideOptions)
    files: Mapping[str, str] = field(default_factory=dict)
    plan: MemoryPlan | None = None

    def __post_init__(self) -> None:
        wanted = f"a number from 0 to {MOST:g}"
        object.__setattr__(self, "scale", checked_number("clip_guidance", self.scale, float, 0, MOST, wanted))

    @classmethod
    def of(cls, scale: float, given: Mapping[str, Any], pack: Mapping[str, Any]) -> "FlowGuidance":
        """That of a `scale` and the options `given`, else those among the pack's own for guidance, else the usual.

        Raises:
            UsageError: if a value is out of its range.
            ImageError: if a file that an option names cannot be read.
        """
        own = {name: value for name, value in pack.items() if name in FLOW_GUIDING}
        request = with_files(GuidedRequest("", 1, 0, guide_options(given, pack=own)))
        return cls(scale, request.options, request.files)

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any], sources: Sources = Sources()) -> "FlowGuidance":
        """The one that `to_entry` wrote, with files that are among `sources`.

        Raises:
            ImageError: if a file that it names is missing or has changed.
            KeyError, TypeError, UsageError: if the values are damaged.
        """
        given = {"prompt": "", "n": 1, "seed": 0, "sampling": {}, "mask_fit": "cover", **values}
        request = sourced(GuidedRequest.from_json(given), sources)
        return cls(values["scale"], request.options, request.files, MemoryPlan.from_json(values["plan"]))

    def to_entry(self) -> dict[str, Any]:
        """What a manifest says of it."""
        request = GuidedRequest("", 1, 0, self.options, files=dict(self.files)).to_json()
        plan = None if self.plan is None else asdict(self.plan)
        return {"scale": self.scale, "options": request["options"], "files": request["files"], "plan": plan}


def asked_guidance(pack: Pack, given: Mapping[str, Any]) -> FlowGuidance | None:
    """CLIP's guidance of a flow from the options that are `given`; None if it is off.

    Raises:
        UsageError: if a value is out of its range, or guidance is off and an option for it is given.
        ImageError: if a file that an option names cannot be read.
    """
    options = {name: value for name, value in given.items() if name in FLOW_GUIDING and value is not None}
    scale = given.get("clip_guidance")
    if scale is None and options:
        raise UsageError(f"{next(iter(options))} is for CLIP's guidance of the flow: add clip_guidance, like 0.5")
    if not scale:
        return None
    return FlowGuidance.of(scale, options, pack.info.get("guidance", {}))


def read_guidance(manifest: Mapping[str, Any], sources: Sources) -> FlowGuidance | None:
    """How CLIP guided the flow that drew the picture of a manifest, with files among `sources`; None if it did not.

    Raises:
        ImageError: if the manifest is damaged, or a file that it names has changed.
    """
    with damage_reported():
        found = read_clip_guidance(manifest)
        return None if found is None else FlowGuidance.from_manifest(found, sources)


def guided_drawing(drawing: Drawing, models: GuidanceModels, how: FlowGuidance) -> Drawing:
    """`drawing` of a prompt with CLIP's guidance by that prompt and what the options add to it.

    Raises:
        UsageError: if an option does not fit the models, or memory does not suffice for one view.
        PackError: if another CLIP cannot be opened.
        ImageError: if a picture that an option names cannot be read.
    """
    request = _request(drawing, how)
    return _guided(drawing, make_batch(request, models, _together(request)), how)


def guided_edit_drawing(drawing: Drawing, models: GuidanceModels, how: FlowGuidance) -> Drawing:
    """`drawing` of an edit with CLIP's guidance by what it is scored by: the prompt, or the picture that was edited."""
    request = _request(drawing, how)
    weights = drawing.texts.new_tensor(drawing.weights)
    prompts = PromptEmbeddings(drawing.texts, weights, torch.full_like(weights, NO_STOP))
    size, pictures = picture_size(request, models), _together(request)
    initial = drawing.texts.new_zeros(len(pictures), models.vqgan.config.code_dim, *models.vqgan.code_grid(size))
    guides = [GuidingCLIP(models.clip, 1.0, (prompts,))]
    return _guided(
        drawing, GuidedBatch(models.vqgan, guides, request.options, request.seed, pictures, size, initial), how
    )


def _request(drawing: Drawing, how: FlowGuidance) -> GuidedRequest:
    o = drawing.options
    steps = 1 if o.flow is None else o.flow.steps
    return GuidedRequest(drawing.prompt, o.rerank, o.seed, replace(how.options, steps=steps, size=o.size or None))


def _together(request: GuidedRequest) -> range:
    """The pictures of which CLIP and the decoder see the first together."""
    return range(min(request.options.batch_size, request.n))


def _guided(drawing: Drawing, batch: GuidedBatch, how: FlowGuidance) -> Drawing:
    how = replace(how, plan=plan_memory(batch) if how.plan is None else how.plan)
    return replace(drawing, lead=_Guide(batch, how).lead, entry={**drawing.entry, "clip_guidance": how.to_entry()})


class _Guide:
    """CLIP's gradient on the pictures of a drawing. `batch` is that of the first pictures that are seen together."""

    def __init__(self, batch: GuidedBatch, how: FlowGuidance):
        assert how.plan is not None
        self.batch, self.plan, self.scale = batch, how.plan, how.scale
        self.latent = make_latent(batch.vqgan, batch.options)

    def lead(self, pictures: range) -> Lead:
        """What leads some `pictures` of the drawing."""
        each = self.batch.options.batch_size

        def gradient(latent: Tensor, step: int) -> Tensor:
            parts = (slice(first, first + each) for first in range(0, len(pictures), each))
            return torch.cat([self._gradient(latent[part], pictures[part], step) for part in parts])

        return Lead(gradient, self.scale)

    def _gradient(self, latent: Tensor, pictures: range, step: int) -> Tensor:
        """The gradient (B, d, h, w) of the loss of `pictures` at `latent`, which is not quantised, at a step."""
        with torch.enable_grad():
            latent = latent.detach().requires_grad_()
            value = self.latent.initial_value(latent)
            state = State(step, value.detach(), value.detach())
            guidance = Guidance(replace(self.batch, pictures=pictures), self.plan, state)
            guidance.gradient_in_memory()
            self.plan = guidance.plan
            (gradient,) = torch.autograd.grad(value, latent, guidance.state.value.grad)
        if not bool(gradient.isfinite().all()):
            raise CodebrushError(f"CLIP's gradient at step {step + 1} is not finite: use --precision float32")
        return gradient
