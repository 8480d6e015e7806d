"""What requests hold and replies say; FastAPI makes the OpenAPI document of it."""

import json
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from codebrush.generation.guided.guide_options import INITS, MEMORY, GuideOptions
from codebrush.serving.api.schemas.reports import IndexReport, TrainingReport
from codebrush.serving.api.schemas.values import (
    DATA_URL,
    Interval,
    Pictures,
    Prompt,
    Seed,
    Strict,
    Text,
    optional,
    whole,
)

MOST_MANIFEST = 1_000_000  # characters; those of pictures made here have some thousands
MOST_PICTURES, MOST_CANDIDATES, MOST_STEPS, MOST_INPUTS, MOST_TEXTS = 10, 64, 2000, 2048, 16
# Options of guidance that name files, which no request may reach, or that the request has in another form.
_NOT_HERE = {"image_prompt", "target", "other_clip", "own_clip_weight", "mask", "mask_side", "palette", "init"}
_OF_ITS_OWN = {"size", "steps", "batch_size", "show_every"}
GUIDANCE = [
    option
    for option in fields(GuideOptions)
    if option.name not in _NOT_HERE | _OF_ITS_OWN and option.metadata["topic"] != MEMORY
]

# Server-sent events as the OpenAPI document describes them: each of them, not the stream, whose size is not known.
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"type": "string", "description": "What it is, as `type` in `data` says too."},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
        }
    }
}


def _guide_field(option: Any) -> tuple[Any, Any]:
    about = option.metadata
    kind: Any = about["kind"]
    limits: dict[str, Any] = {}
    if kind is tuple:
        kind, limits = list[Prompt], {"max_length": MOST_TEXTS}
    elif about.get("choices"):
        kind = Literal[about["choices"]]
    elif kind is str:
        limits = {"max_length": 100}
    elif kind is not bool:
        limits = {"ge": about["least"], "le": about["most"]}
    return kind | None, Field(default=None, description=f"guide: {about['help']}", **limits)


_options: dict[str, Any] = {option.name: _guide_field(option) for option in GUIDANCE}
_Guidance: Any = create_model("Guidance", __base__=Strict, **_options)


class Returned(Strict):
    """In which form pictures are wanted."""

    model: str | None = optional("A pack that the server has. Default: its first.", max_length=200)
    output_format: Literal["png", "jpeg", "webp"] | None = optional("Default: png, which says how it was made.")
    output_compression: int | None = optional("jpeg, webp: quality. Default: 100.", ge=0, le=100)
    response_format: Literal["url", "b64_json"] | None = optional("Default: b64_json.")
    wait: bool = Field(default=True, description="false: answer at once with the job, to be looked at later.")


class Drawing(Returned):
    """What every request that draws may hold: OpenAI's parameters, and our own, which its client sends through
    `extra_body`."""

    n: int | None = Field(default=None, ge=1, le=MOST_PICTURES, description="How many pictures. Default: 1.")
    size: str | None = optional("WIDTHxHEIGHT in pixels, or auto: the pack's own.", pattern=r"^(auto|\d{1,5}x\d{1,5})$")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = optional(
        "Pictures drawn for each that is kept: low 1, medium (standard, auto) 4 or by a flow 2, high (hd) 8."
    )
    background: Literal["auto", "opaque", "transparent"] | None = optional("Not to be chosen: transparent is refused.")
    stream: bool | None = optional("Answer with server-sent events.")
    partial_images: int | None = optional("Half-drawn pictures to stream on the way, at most.", ge=0, le=3)
    user: str | None = optional("Not used.", max_length=1000)
    safety_identifier: str | None = optional("Not used.", max_length=1000)
    moderation: Literal["auto", "low"] | None = optional("Not used.")

    seed: Seed | None = optional("Random seed: the same seed gives the same pictures. Default: another each time.")
    cfg: float | None = optional("Scale of classifier-free guidance.", ge=0, le=100)
    temperature: float | None = optional("0 takes the likeliest code.", ge=0, le=100)
    top_k: int | None = optional("Draw among so many codes; 0: all.", ge=0, le=2**31 - 1)
    top_p: float | None = optional("Draw among the likeliest codes of this probability in all.", gt=0, le=1)
    min_p: float | None = optional("Least probability of a code, as a share of the likeliest one's.", ge=0, le=1)
    retouch: int | None = optional("Rounds in which the least likely codes are drawn again.", ge=0, le=16)
    rerank: int | None = optional("Pictures to draw, of which the best n are kept.", ge=1, le=MOST_CANDIDATES)
    sampler: Literal["euler", "heun", "dpm"] | None = optional("flow: how a step is taken.")
    cfg_interval: Interval | None = optional("flow: guidance only between these times, A,B; 1 is noise.")
    clip_guidance: float | None = optional("flow: CLIP bends it by so many deviations; 0.5 is a start.", ge=0, le=100)
    steps: int | None = optional("guide, flow, masked transformers: how many steps are taken.", ge=1, le=MOST_STEPS)
    upscale: Literal[1, 2, 4] | None = optional("Enlarge the pictures afterwards.")


class GenerationRequest(Drawing, _Guidance):
    """A request for pictures of a prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple", "n": 2, "size": "auto", "seed": 7},
                {"prompt": "a dog:1.2 | blurry:-0.5", "method": "guide", "steps": 40, "response_format": "url"},
            ]
        }
    )

    prompt: Prompt = Field(description="What to draw. Weights: `a dog:1.2 | blurry:-0.5`.")
    negative_prompt: Text | None = optional("What the picture should not show.")
    style: str | None = optional("One of the pack's styles. vivid and natural are not used.", max_length=200)

    method: Literal["sample", "flow", "retrieve", "guide"] | None = optional(
        "How pictures are made. Default: the pack's usual painter."
    )
    init: Literal[INITS] | None = optional("guide: where to begin.")  # pyright: ignore[reportInvalidTypeForm]
    preset: str | None = optional("guide: a set of values for its options.", max_length=100)
    prior: Literal["retrieval", "mlp", "none"] | None = optional("retrieve, flow: source of the image embedding.")
    neighbours: int | None = optional("retrieve, flow: how many similar pictures to blend.", ge=1, le=64)


class EditRequest(Drawing):
    """A request to change pictures, sent as a form beside them."""

    prompt: Prompt = Field(description="What the picture, or the part of it that changes, is to show.")
    negative_prompt: Text | None = optional("What it should not show.")
    style: str | None = optional("One of the pack's styles. vivid and natural are not used.", max_length=200)
    input_fidelity: Literal["high", "low"] | None = optional("Not used.")
    method: Literal["sample", "flow"] | None = optional("What draws. Default: the pack's usual painter.")
    strength: float | None = optional("Without a mask: the share of the picture that is redrawn.", gt=0, le=1)


class VariationRequest(Drawing):
    """A request for pictures that are similar to one, sent as a form beside it."""

    method: Literal["sample", "flow"] | None = optional("What draws. Default: the pack's usual painter.")
    strength: float | None = optional("flow: how far from the picture; 1 keeps only what CLIP sees.", gt=0, le=1)


class UpscaleRequest(Returned):
    """Pictures to enlarge."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": DATA_URL, "scale": 4}]})

    image: Pictures
    scale: Literal[2, 4] = Field(default=2, description="How many times as wide and high.")

    @field_validator("scale", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class ReplayRequest(Returned):
    """A picture to make again, by the PNG or by its manifest, with the pictures that it was made from."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": DATA_URL, "source": DATA_URL}]})

    image: str | None = optional("The PNG, as a data URL.")
    manifest: dict[str, Any] | None = optional("Its manifest, if there is no PNG.")
    source: Pictures | None = optional("The pictures that it was made from, if any, as data URLs.")
    mask: str | None = optional("The mask of an edit, as it was sent then, as a data URL.")

    @field_validator("manifest", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except RecursionError:
                raise ValueError("it is no manifest") from None
        try:
            long = len(json.dumps(value)) > MOST_MANIFEST
        except RecursionError:
            raise ValueError("it is no manifest") from None
        if long:
            raise ValueError(f"it has more than {MOST_MANIFEST:,} characters")
        return {**value, "seed": whole(value["seed"])} if isinstance(value, dict) and "seed" in value else value


class EmbeddingRequest(Strict):
    """A request for embeddings: OpenAI's parameters; a picture is a data URL."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "emoji", "input": ["a red apple", "a dog"], "dimensions": 64}]}
    )

    input: str | list[str] = Field(
        description=f"A text, or a list of up to {MOST_INPUTS}. `data:image/png;base64,...` is a picture.",
        min_length=1,
        max_length=None,
    )
    model: str | None = optional("A pack that the server has. Default: its first.", max_length=200)
    encoding_format: Literal["float", "base64"] | None = optional("base64: little-endian float32. Default: float.")
    dimensions: int | None = optional("Cut to so many numbers, and of unit length again.", ge=1, le=65536)
    user: str | None = optional("Not used.", max_length=1000)


Warnings = Annotated[list[str], Field(description="What to expect of the result, such as words that are not known.")]


class InputDetails(BaseModel):
    """What the input tokens were."""

    text_tokens: int
    image_tokens: int


class ImageUsage(BaseModel):
    """Tokens read and codes drawn."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int = Field(description="Codes of the pictures.")
    total_tokens: int


class ImageData(BaseModel):
    """One picture: its bytes, or where they are; and how it was made."""

    b64_json: str | None = None
    url: str | None = Field(default=None, description="Served by this server until the job is forgotten.")
    seed: int | str | None = Field(default=None, description="A text if JavaScript would round the number.")
    index: int | None = Field(default=None, description="The picture draws from the random stream of (seed, index).")
    clip_score: float | None = Field(default=None, description="CLIP's cosine with the prompt.")
    scorer_score: float | None = Field(default=None, description="The cosine by the pack's scorer.")
    verdict: str | None = Field(default=None, description="likely, unsure or unlikely to show the prompt.")
    identical: bool | None = Field(default=None, description="Of a replay: whether the pixels are those of the PNG.")


class ImagesReply(BaseModel):
    """Pictures, best first."""

    created: int
    data: list[ImageData]
    background: Literal["opaque", "transparent"]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["low", "medium", "high"]
    size: str
    usage: ImageUsage
    job: str = Field(description="The job that made them: /v1/jobs/{job}.")
    warnings: Warnings


class PicturesReply(BaseModel):
    """Pictures in the order of those sent."""

    created: int
    data: list[ImageData]
    output_format: Literal["png", "jpeg", "webp"]
    size: str = Field(description="Of the first.")
    model: str
    job: str = Field(description="The job that made them: /v1/jobs/{job}.")
    warnings: Warnings


class Progress(BaseModel):
    """How far a job is."""

    step: int
    of: int = Field(description="0 before the first step.")
    seconds_left: float | None


class JobErrorReply(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class JobReply(BaseModel):
    """A job as it is now."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    model: str
    state: Literal["queued", "running", "cancelling", "done", "failed", "cancelled"]
    created: float
    started: float | None
    finished: float | None
    progress: Progress
    latest: str | None = Field(description="URL of the latest half-drawn picture.")
    data: list[ImageData] | None = Field(description="Of a job that draws, when it is done.")
    index: IndexReport | None = Field(default=None, description="Of a job that indexes, when it is done.")
    training: TrainingReport | None = Field(default=None, description="Of a job that trains.")
    error: JobErrorReply | None
    warnings: Warnings


class ModelReply(BaseModel):
    """A pack."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(description="The licence of its weights.")
    image_size: int
    members: list[str] = Field(description="What the pack consists of: clip, vqgan, transformer, ...")
    styles: list[str]


class ModelsReply(BaseModel):
    """All packs."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


class EmbeddingData(BaseModel):
    """The embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or base64 of little-endian float32.")


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """Embeddings of unit length, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    model: str
    usage: EmbeddingUsage
    warnings: Warnings


class HealthReply(BaseModel):
    """That the server is well."""

    status: Literal["ok", "starting", "stopping"] = Field(description="`starting` while no worker is ready.")
    version: str
    waiting: int = Field(description="Jobs in the queue.")
    started: float = Field(description="When the server was started, in Unix seconds.")
    workers: dict[Literal["ready", "of"], int] = Field(description="How many are ready for work, of how many.")


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error, as OpenAI's API says it."""

    error: ErrorDetails
