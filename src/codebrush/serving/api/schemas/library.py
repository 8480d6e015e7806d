"""What requests about libraries hold, and what replies say of indexes, results and trainings."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from codebrush.serving.api.schemas.reports import IndexEntry
from codebrush.serving.api.schemas.values import DATA_URL, Prompt, Strict, optional

Place = Annotated[str, Field(min_length=1, max_length=1000)]
Captions = Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(max_length=16)]
PackName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
PICTURE = "A picture as a data URL, `data:image/png;base64,...`."
PLACE = "A folder or table in a library, such as `pictures/cats`: the library's name comes first."
CAPTIONS = "Captions made of columns, such as `a {breed} cat`. Default: the column or the files with captions."
MODEL = "A pack that the server has. Default: its first."


class IndexRequest(Strict):
    """A place to index for searches."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"folder": "pictures/cats"}]})

    folder: Place = Field(description=PLACE)
    model: str | None = optional(MODEL, max_length=200)
    captions: Captions = Field(default=[], description=CAPTIONS)


class _Search(Strict):
    folder: Place = Field(description=f"{PLACE} It must be indexed.")
    model: str | None = optional(MODEL, max_length=200)
    n: int = Field(default=10, ge=1, le=100, description="How many results.")


class SearchRequest(_Search):
    """Words, a picture or both to search for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"folder": "pictures/cats", "text": "a red apple", "n": 4},
                {"folder": "pictures", "text": "at night", "image": DATA_URL},
            ]
        }
    )

    text: Prompt | None = optional("What to search for, taken literally.")
    image: str | None = optional(PICTURE)
    image_weight: float = Field(default=0.5, ge=0, le=1, description="With both: the share of the picture.")
    without: list[Prompt] = Field(default=[], max_length=16, description="What the pictures should not show.")
    mode: Literal["vector", "text", "hybrid", "meaning"] = Field(
        default="vector",
        description="What the words are compared with: pictures, captions, both, or what captions and columns mean.",
    )
    min_score: float | None = optional("vector: leave out pictures whose cosine is lower.", ge=-1, le=1)


class SimilarRequest(_Search):
    """A picture, or one of an index by its id, to find others like."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"folder": "pictures/cats", "id": "cGljdHVyZXMvY2F0cy8wMS5wbmc", "n": 4}]}
    )

    id: str | None = optional("The `id` of a result.", min_length=1, max_length=4000)
    image: str | None = optional(PICTURE)


class CheckRequest(Strict):
    """A place to look through before a training."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source": "pictures/cats", "captions": ["a {breed}"]}]})

    source: Place = Field(description=PLACE)
    captions: Captions = Field(default=[], description=CAPTIONS)


class TrainRequest(CheckRequest):
    """A pack to train within a time."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"source": "pictures/cats", "name": "cats", "budget": "60m"}]}
    )

    name: PackName = Field(description="The name of the new model.")
    budget: str = Field(default="60m", max_length=20, description="Time for all stages, with a unit: 90s, 60m, 2h.")
    model: str | None = optional("The pack to begin from. Default: the server's first.", max_length=200)
    fresh: bool = Field(default=False, description="Begin from nothing.")
    image_size: int | None = optional("Side of the pack's pictures. Default: as in the pack begun from.", ge=16, le=256)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class EntryReply(BaseModel):
    """A folder or table in a library."""

    folder: str = Field(description="What requests call it.")
    kind: Literal["folder", "table"]
    pictures: int | None = Field(description="Picture files that a folder itself holds.")


class LibraryReply(BaseModel):
    """What is in the libraries, and which places have an index."""

    object: Literal["list"] = "list"
    data: list[EntryReply]
    indexes: list[IndexEntry]


class SearchResult(BaseModel):
    """A picture of an index."""

    id: str = Field(description="For /v1/similar.")
    picture: str = Field(description="Where it is in the library; `#` and a name follow for one in a table.")
    score: float = Field(description="CLIP's cosine; in other modes comparable within one search only.")
    caption: str
    width: int | None
    height: int | None
    thumbnail: str = Field(description="URL of a small WEBP picture, valid until the server stops.")
    url: str = Field(description="URL of it as PNG, up to 1,024 pixels wide and high; small if it is in a table.")


class SearchReply(BaseModel):
    """Results, best first, and whether anything is near to the words."""

    object: Literal["list"] = "list"
    model: str
    index: str
    data: list[SearchResult]
    near: bool | None = Field(description="Whether any picture fits the words; null where that is not known.")
    level: float | None = Field(description="Share of texts about other things that fit every picture less.")
    doubt: str | None = Field(description="A line for readers of the results, if nothing is near.")
    by_meaning: list[str] = Field(
        description="Captions and cells that mean nearly the same; their pictures come first."
    )
    note: str = Field(description="How the query was read, if not as it stands.")
    best_score: float | None = Field(description="The best cosine, if all are below `min_score`.")


class CheckReply(BaseModel):
    """What a training would find in a place."""

    pictures: int = Field(description="With captions.")
    columns: list[str]
    captions: list[str] = Field(description="Some of them.")
    problems: list[str] = Field(description="What is not read, and why.")


class Stopped(BaseModel):
    """A training that can be resumed."""

    name: str
    source: str
    seconds: float = Field(description="That it has taken.")
    budget: float
    disk_bytes: int


class StoppedReply(BaseModel):
    """The trainings that are not finished."""

    object: Literal["list"] = "list"
    data: list[Stopped]


class DeletedReply(BaseModel):
    """That a thing is gone."""

    id: str
    object: str
    deleted: bool
