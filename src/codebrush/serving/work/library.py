"""What is done with the pictures of a library: they are indexed, searched, and looked through before a training."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import decode_image
from codebrush.data.sources.file_names import existing, read_file
from codebrush.errors import CodebrushError, DataError
from codebrush.files import write_json
from codebrush.pack.pack import clip_hash
from codebrush.pipeline import Codebrush
from codebrush.progress import Progress
from codebrush.search.database import Database, Embedder, create_database, open_database, quoted
from codebrush.search.finding import Found, Query, find
from codebrush.search.indexing import check_read, index_pictures
from codebrush.search.memory_index import MemoryIndexes
from codebrush.search.pictures import Candidate, open_pictures
from codebrush.search.places import check_installed
from codebrush.search.queries import Hit, search
from codebrush.serving.job import Job, JobError
from codebrush.serving.library import ABOUT, DATABASE, Library
from codebrush.serving.work.kinds import INDEX, LOOK, READ, Kind
from codebrush.training.dataset import SourceConfig, evenly
from codebrush.understanding.classification import pack_temperature
from codebrush.warned import heard

MOST_NAMED = 20  # pictures that could not be read, named in a reply
SIDE = 1024  # pixels of a picture that is shown large
SHOWN = 5  # captions that are shown of a source
OUTSIDE = "leads out of the library"


def library_kinds(library: Library) -> Mapping[str, Kind]:
    """The kinds of jobs that read a library."""
    return {
        "index": Kind(partial(_index, library), lane=INDEX, long=True),
        "search": Kind(partial(_search, library, MemoryIndexes()), lane=READ),
        "check": Kind(partial(_check, library), lane=LOOK),  # a large source takes a while, an index hours
    }


def embedder_of(brush: Codebrush) -> Embedder:
    """Which CLIP makes the embeddings."""
    return Embedder(brush.pack.name, clip_hash(brush.pack.member("clip")))


def _index(library: Library, brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """Bring the index of a place up to date; a run that was stopped goes on where it was."""
    (job,) = jobs
    path, embedder = library.find(job.request["folder"]), embedder_of(brush)
    library.check_links(path)
    folder = library.index_folder(path, embedder.clip)
    folder.mkdir(parents=True, exist_ok=True)
    captions = job.request["captions"] or _known(folder).get("captions", [])
    try:
        with _in_reply():
            source = open_pictures(str(path), captions)
        inside = _Inside(library, source.candidates)
        database = create_database(folder / DATABASE, embedder, brush.clip.embed_dim)
        database.update_words()
        report = index_pictures(database, [replace(source, candidates=inside)], brush.clip, progress)
        skipped = [*report.skipped, *({"path": path, "reason": OUTSIDE} for path in inside.left_out)]
        report.skipped = skipped
        check_read(database, report)
    except CodebrushError as error:
        raise DataError(library.without_paths(str(error))) from error
    counts = {name: value for name, value in asdict(report).items() if isinstance(value, int)}
    about = {
        "folder": job.request["folder"], "model": job.pack, "captions": captions, "pictures": database.count(),
        "finished": int(job.created),
    }  # fmt: skip
    write_json(folder / ABOUT, about)
    named = [{"picture": library.place(each["path"]), "reason": each["reason"]} for each in skipped[:MOST_NAMED]]
    notes = [library.without_paths(line) for line in source.unread.lines]
    return [{"id": folder.name, **about, **counts, "skipped": len(skipped), "named": named, "notes": notes}]


def _in_reply() -> AbstractContextManager[None]:
    """Where sources are opened: what they warn of stands in the reply, without this machine's paths."""
    return heard(lambda text, number: None)


@dataclass
class _Inside:
    """Those of the candidates whose files lie in the library: a table may name any file. The others are `left_out`."""

    library: Library
    candidates: Any
    left_out: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Candidate]:
        for candidate in self.candidates:
            if candidate.data is not None or self.library.holds(existing(Path(candidate.path))):
                yield candidate
            else:
                self.left_out.append(candidate.path)


def _known(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return {}


def open_index(library: Library, brush: Codebrush, place: str, memory: MemoryIndexes) -> tuple[str, Database]:
    """The id and the database of a place's index by the CLIP of a pack, searched in `memory`.

    Raises:
        JobError: if it was not indexed.
    """
    check_installed()  # before it is said that there is no index, which could not be made
    embedder = embedder_of(brush)
    folder = library.index_folder(library.find(place), embedder.clip)
    if not (folder / ABOUT).is_file():
        raise JobError("not_indexed", f"'{place}' has no index for the model '{embedder.pack}': index it first")
    return folder.name, open_database(folder / DATABASE, embedder, memory=memory)


def _search(
    library: Library, memory: MemoryIndexes, brush: Codebrush, jobs: Sequence[Job], progress: Progress
) -> list[dict[str, Any]]:
    """Search an index by words, a picture or both, or for what is like a picture of it."""
    (job,) = jobs
    asked = job.request
    index, database = open_index(library, brush, asked["folder"], memory)
    if asked.get("like"):
        found = _like(database, library.path_of(asked["like"]), asked["n"])
    else:
        names = ("text", "picture_weight", "without", "mode", "min_score")
        query = Query(**{name: asked[name] for name in names if name in asked}, k=asked["n"], thumbnails=False)
        if name := asked.get("picture"):
            picture = decode_image((job.folder / name).read_bytes(), max_pixels=asked["max_pixels"])
            query = replace(query, picture=brush.embed_images([picture], database.embedder.fit)[0])
        if query.mode in ("text", "hybrid"):
            database.update_words()
        found = find(
            database,
            brush.clip,
            brush.tokenizer,
            query,
            temperature=pack_temperature(brush.pack.info),
            known=brush.known_texts,
        )
    progress(1, 1)
    return [_said(library, index, found)]


def _like(database: Database, path: str, n: int) -> Found:
    """The pictures nearest to one of the database, without itself."""
    rows = [row for part in database.rows(["embedding"], f"path = {quoted(path)}") for row in part.to_pylist()]
    if not rows or rows[0]["embedding"] is None:
        raise JobError("picture_not_found", "there is no picture with this id, or no longer")
    hits = search(database, Tensor(rows[0]["embedding"]), k=n + 1, thumbnails=False)
    return Found([hit for hit in hits if hit.path != path][:n], [], None)


def _said(library: Library, index: str, found: Found) -> dict[str, Any]:
    judged = found.judged
    return {
        "index": index,
        "near": None if judged is None else judged.near and not found.below,
        "level": None if judged is None else judged.level,
        "doubt": None if judged is None or found.by_captions or found.meant else judged.doubt,
        "by_meaning": list(found.meant),
        "note": found.note,
        "best_score": found.below[0].score if found.below else None,
        "data": [_hit(library, hit) for hit in found.hits],
    }


def _hit(library: Library, hit: Hit) -> dict[str, Any]:
    return {
        "id": library.picture_id(hit.path), "picture": library.place(hit.path), "score": hit.score,
        "caption": hit.caption, "width": hit.columns.get("width"), "height": hit.columns.get("height"),
    }  # fmt: skip


def thumbnail(library: Library, index: str, picture: str) -> bytes | None:
    """The small picture, a WEBP file, that an index keeps of a row; None if there is none. No other file is read."""
    folder = library.indexes / index / DATABASE
    with suppress(CodebrushError):
        where = f"path = {quoted(library.path_of(picture))}"
        for part in open_database(folder).rows(["thumbnail"], where):
            for row in part.to_pylist():
                return row["thumbnail"]
    return None


def whole_picture(library: Library, index: str, picture: str, max_pixels: int) -> Image.Image | None:
    """The picture of a row at its own size, up to `SIDE` pixels, from its file in the library, or of one in a table the
    small one; None if it is gone. Raises ImageError if it cannot be read."""
    path = library.path_of(picture)
    rows = open_database(library.indexes / index / DATABASE).rows(["modified", "thumbnail"], f"path = {quoted(path)}")
    row = next((row for part in rows for row in part.to_pylist()), None)
    if row is None:
        return None
    content, file = row["thumbnail"], existing(Path(path))
    if row["modified"] is not None:
        if not library.holds(file) or not file.is_file():
            return None
        content = read_file(file)
    found = decode_image(content, keep_mode=True, max_pixels=max_pixels)
    found.thumbnail((SIDE, SIDE))
    return found


def open_rows(library: Library, place: str, captions: Sequence[str]) -> Any:
    """The captioned pictures of a place, none of which lies outside. Raises DataError for what cannot be read."""
    path = library.find(place)
    library.check_links(path)
    try:
        with _in_reply():
            rows = SourceConfig(str(path), captions=tuple(captions)).open()
        outside = next((file for file in rows.files() if not library.holds(existing(file))), None)
    except CodebrushError as error:
        raise DataError(library.without_paths(str(error))) from error
    if outside is not None:
        raise JobError("invalid_path", f"'{place}' names pictures outside the library, such as {outside.name}")
    return rows


def _check(library: Library, brush: Codebrush, jobs: Sequence[Job], progress: Progress) -> list[dict[str, Any]]:
    """What a training would find in a place."""
    (job,) = jobs
    rows = open_rows(library, job.request["source"], job.request["captions"])
    some = [int(row) for row in evenly(len(rows), SHOWN)]
    progress(1, 1)
    return [
        {
            "pictures": len(rows),
            "columns": rows.schema.names,
            "captions": [caption for row in some for caption in rows.captions(row)[:1]],
            "problems": [library.without_paths(line) for line in rows.unread.lines],
        }
    ]
