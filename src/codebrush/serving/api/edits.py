"""`/v1/images/edits` and `/v1/images/variations`: forms with pictures, as OpenAI's clients send them."""

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from codebrush.generation.options import SAMPLING
from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.forms import content, invalid, only, text_of
from codebrush.serving.api.images import Wanted, answer, drawing_options, previews_of
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import EVENTS, Drawing, EditRequest, ImagesReply, JobReply, VariationRequest
from codebrush.serving.api.schemas.values import FROM_FORM, MOST_SENT

# Options that pass to `Codebrush.edit` and `vary` as they are.
PASSED = ("negative_prompt", "method", "strength", "steps", "sampler", "cfg_interval", "clip_guidance", *SAMPLING)
FILES = ("image", "image[]", "mask")
Asked = TypeVar("Asked", bound=Drawing)
router = APIRouter(tags=["images"])


def _form(kind: type[Drawing], **files: str) -> dict[str, Any]:
    """The part of the OpenAPI document that describes a form: its fields, and its files with what each is."""
    schema = kind.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    schema["properties"] |= {name: {**binary, "description": about} for name, about in files.items()}
    schema["required"] = [*schema.get("required", ()), "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


REPLIES: dict[int | str, dict[str, Any]] = {
    200: {"content": EVENTS},
    202: {"model": JobReply, "description": "The job, if `wait` is false."},
}


@router.post(
    "/v1/images/edits",
    response_model=ImagesReply,
    summary="Change pictures",
    responses=REPLIES,
    openapi_extra=_form(
        EditRequest,
        image=f"The picture. Several, up to {MOST_SENT}, come as `image[]`, and each is changed.",
        mask="A PNG of the picture's size: where it is transparent, the picture changes.",
    ),
)
async def edit(request: Request, context: Served) -> Response:
    """As OpenAI's endpoint: where the `mask` is transparent the picture is painted anew under the prompt, and keeps its
    size; without a mask the square in its middle is redrawn at the pack's size. Events are `image_edit.*`."""
    asked, files = await _read(request, EditRequest)
    found = _job_request(asked, files)
    if "mask" in files and asked.strength is not None:
        raise Problem(400, "strength is for redrawing a whole picture: leave it out with a mask", "invalid_value")
    return await _answer(context, "edit", found | {"prompt": asked.prompt}, asked, files, request, "image_edit")


@router.post(
    "/v1/images/variations",
    response_model=ImagesReply,
    summary="Draw pictures similar to one",
    responses=REPLIES,
    openapi_extra=_form(VariationRequest, image="The picture."),
)
async def vary(request: Request, context: Served) -> Response:
    """As OpenAI's endpoint: pictures that CLIP finds similar. Events are `image_variation.*`."""
    asked, files = await _read(request, VariationRequest)
    if "mask" in files:
        raise Problem(400, "a mask is for edits", "unknown_parameter", "mask")
    found = _job_request(asked, files)
    return await _answer(context, "vary", found, asked, files, request, "image_variation")


async def _answer(
    context: Context,
    kind: str,
    found: dict[str, Any],
    asked: Drawing,
    files: dict[str, bytes],
    request: Request,
    events: str,
) -> Response:
    wanted = Wanted.of(asked)
    found["max_pixels"] = context.settings.max_input_pixels
    job = await context.submit(kind, asked.model or context.settings.packs[0], found, request, files)
    return await answer(context, job, asked, wanted, request, events)


async def _read(request: Request, kind: type[Asked]) -> tuple[Asked, dict[str, bytes]]:
    """The fields of a form, checked, and its files: picture_00 and so on, and mask."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(400, "send the picture in a form: multipart/form-data", "invalid_content_type")
    async with request.form(max_files=MOST_SENT + 1, max_fields=200) as form:
        fields = {name: text_of(form, name) for name in form if name not in FILES}
        uploads = [*form.getlist("image"), *form.getlist("image[]")]
        files = {f"picture_{number:02d}": await content(each, "image") for number, each in enumerate(uploads)}
        if "mask" in form:
            files["mask"] = await content(only(form.getlist("mask"), "mask"), "mask")
    try:
        return kind.model_validate(fields, context=FROM_FORM), files
    except ValidationError as error:
        raise invalid(error) from None


def _job_request(asked: Drawing, files: dict[str, bytes]) -> dict[str, Any]:
    """The arguments that edits and variations share. Raises Problem for what does not go with a picture."""
    pictures = [name for name in files if name != "mask"]
    if not pictures:
        raise Problem(400, "Missing required parameter: 'image'", "missing_required_parameter", "image")
    if len(pictures) > MOST_SENT:
        raise Problem(400, f"send at most {MOST_SENT} pictures", "invalid_value", "image")
    if asked.size not in (None, "auto"):
        raise Problem(400, "the picture sets the size: leave it out, or say auto", "unsupported_value", "size")
    return {"pictures": pictures, "mask": "mask" in files, **drawing_options(asked, PASSED), **previews_of(asked)}
