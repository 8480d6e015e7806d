"""`/v1/library`, `/v1/search` and `/v1/similar`: the folders that the server may read, their indexes, and searches."""

import hmac
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from codebrush.serving.api.context import Context, Served
from codebrush.serving.api.embeddings import data_url
from codebrush.serving.api.problems import Problem
from codebrush.serving.api.schemas.images import JobReply
from codebrush.serving.api.schemas.library import (
    CheckReply,
    CheckRequest,
    DeletedReply,
    IndexRequest,
    LibraryReply,
    SearchReply,
    SearchRequest,
    SimilarRequest,
)
from codebrush.serving.job import png_bytes
from codebrush.serving.library import INDEX_ID, pictures_in
from codebrush.serving.work.library import thumbnail, whole_picture

router = APIRouter(tags=["library"])


@router.get("/v1/library", response_model=LibraryReply, summary="List what is in the libraries")
def library(context: Served, folder: str | None = None) -> dict[str, Any]:
    """The libraries, or the folders and tables in a `folder` of one, and the indexes of them."""
    shelf = context.engine.library
    if folder is None:
        data = [{"folder": name, "kind": "folder", "pictures": pictures_in(root)} for name, root in shelf.roots.items()]
        return {"object": "list", "data": data, "indexes": shelf.index_list()}
    data = [{"folder": e.place, "kind": e.kind, "pictures": e.pictures} for e in shelf.entries(folder)]
    below = [each for each in shelf.index_list() if f"{each['folder']}/".startswith(f"{folder}/")]
    return {"object": "list", "data": data, "indexes": below}


@router.post(
    "/v1/library/index", response_model=JobReply, status_code=202, summary="Index a folder or table for searches"
)
async def index(asked: IndexRequest, request: Request, context: Served) -> JSONResponse:
    """Answers with the job. When a place is indexed again, new pictures are added, changed ones updated, and those that
    are gone removed."""
    await run_in_threadpool(context.engine.library.find, asked.folder)
    pack = asked.model or context.settings.packs[0]
    found = {"folder": asked.folder, "captions": asked.captions}
    return await context.accepted(await context.submit("index", pack, found, request), request)


@router.delete("/v1/library/index/{index}", response_model=DeletedReply, summary="Delete an index")
def delete_index(index: str, context: Served) -> dict[str, Any]:
    """Deletes an index, not the pictures; also one whose place is gone."""
    context.engine.delete_index(index)
    return {"id": index, "object": "index", "deleted": True}


@router.post("/v1/library/check", response_model=CheckReply, summary="Look through a source before a training")
async def check(asked: CheckRequest, request: Request, context: Served) -> dict[str, Any]:
    """How many captioned pictures a training would find, some of the captions, and what it would leave out."""
    found = asked.model_dump(include={"source", "captions"})
    _, result = await context.told("check", context.settings.packs[0], found, request)
    return result


@router.post("/v1/search", response_model=SearchReply, summary="Search an indexed folder")
async def search(asked: SearchRequest, request: Request, context: Served) -> dict[str, Any]:
    """By words, by a picture, or by both. Says whether any picture is near to the words; where none is, pictures whose
    captions or columns mean nearly the same come first."""
    if asked.text is None and asked.image is None:
        raise Problem(400, "there is nothing to search for: give text, image or both", "missing_required_parameter")
    if asked.mode != "vector" and asked.min_score is not None:
        raise Problem(400, f"min_score is a cosine, and scores of the mode {asked.mode} are none", "invalid_value")
    if asked.mode in ("text", "meaning") and (asked.text is None or asked.image is not None):
        raise Problem(400, f"the mode {asked.mode} searches for words alone", "invalid_value", "mode")
    if asked.mode == "hybrid" and asked.text is None:
        raise Problem(400, "the mode hybrid needs words", "invalid_value", "mode")
    found = asked.model_dump(include={"folder", "text", "without", "mode", "min_score", "n"})
    found["picture_weight"] = asked.image_weight
    return await _search(asked.model, found, asked.image, request, context)


@router.post("/v1/similar", response_model=SearchReply, summary="Find pictures like one")
async def similar(asked: SimilarRequest, request: Request, context: Served) -> dict[str, Any]:
    """Like a picture that is sent, or like one of the index, by the `id` of a result; that one is left out."""
    if (asked.id is None) is (asked.image is None):
        raise Problem(400, "give either id or image", "missing_required_parameter", "image")
    found: dict[str, Any] = {"folder": asked.folder, "n": asked.n}
    if asked.id is not None:
        await run_in_threadpool(context.engine.library.path_of, asked.id)  # raises JobError for what is none
        found["like"] = asked.id
    return await _search(asked.model, found, asked.image, request, context)


async def _search(
    model: str | None, found: dict[str, Any], image: str | None, request: Request, context: Context
) -> dict[str, Any]:
    files = {} if image is None else {"picture": await run_in_threadpool(data_url, image, "image")}
    found |= {name: name for name in files} | {"max_pixels": context.settings.max_input_pixels}
    pack = model or context.settings.packs[0]
    _, result = await context.told("search", pack, found, request, files)
    for each in result["data"]:
        address = address_of(context, result["index"], each["id"])
        each["thumbnail"] = f"{str(request.base_url).rstrip('/')}{address}"
        each["url"] = f"{each['thumbnail']}/large"
    return {"object": "list", "model": pack, **result}


def address_of(context: Context, index: str, picture: str) -> str:
    """Where the small picture of a result is served; the large one is at `/large` below it."""
    return f"/files/library/{index}/{context.engine.library.signature(index, picture)}/{picture}"


@router.get("/files/library/{index}/{signed}/{picture}", response_class=Response, include_in_schema=False)
def small_picture(index: str, signed: str, picture: str, context: Served) -> Response:
    """A result's small picture, out of the index; it needs no key but its address, which nobody can guess."""
    _check_signed(context, index, signed, picture)
    found = thumbnail(context.engine.library, index, picture)
    if not found:
        raise _gone()
    return Response(found, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/files/library/{index}/{signed}/{picture}/large", response_class=Response, include_in_schema=False)
def large_picture(index: str, signed: str, picture: str, context: Served) -> Response:
    """A result's picture from its file in the library, as PNG."""
    _check_signed(context, index, signed, picture)
    found = whole_picture(context.engine.library, index, picture, context.settings.max_input_pixels)
    if found is None:
        raise _gone()
    return Response(png_bytes(found), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _check_signed(context: Context, index: str, signed: str, picture: str) -> None:
    expected = context.engine.library.signature(index, picture)
    if not INDEX_ID.fullmatch(index) or not hmac.compare_digest(signed.encode(), expected.encode()):
        raise _gone()


def _gone() -> Problem:
    return Problem(404, "there is no such file, or no longer", "not_found")
