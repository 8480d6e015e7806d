"""What jobs that index and train say of themselves."""

from typing import Any

from pydantic import BaseModel, Field


class IndexEntry(BaseModel):
    """An index of a place, by the CLIP of a model."""

    id: str
    folder: str
    model: str
    pictures: int
    captions: list[str] = Field(description="The templates that it was made with.")
    finished: int
    gone: bool = Field(default=False, description="Whether its place is no longer in a library.")


class Named(BaseModel):
    """A picture that was left out, and why."""

    picture: str
    reason: str


class IndexReport(IndexEntry):
    """What a run of indexing did, in numbers of pictures."""

    added: int
    updated: int
    removed: int
    unchanged: int
    reused: int = Field(description="Of those added: known under another path.")
    skipped: int
    named: list[Named] = Field(description="The first of those that were skipped.")
    notes: list[str]


class Preview(BaseModel):
    """A sheet of pictures that a stage drew while it was trained."""

    name: str
    url: str


class TrainingReport(BaseModel):
    """How a training is going, and how it ended."""

    name: str
    source: str
    budget: float = Field(description="Seconds.")
    threads: int = Field(description="CPU threads that it gets.")
    curves: dict[str, list[dict[str, float]]] = Field(description="By stage: logged values, each with its step.")
    previews: list[Preview]
    sheets: list[Preview] = Field(description="Samples and reconstructions of the finished pack.")
    said: list[str] = Field(description="The last lines that it said.")
    disk_bytes: int = Field(description="What the pack and the work on it take.")
    can_resume: bool
    verdict: list[str] = Field(description="In plain words, when it is done.")
    stages: dict[str, Any] = Field(description="Figures of each stage, when it is done.")
