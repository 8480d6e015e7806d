"""What requests about pictures hold, and what replies say that pictures show."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from codebrush.serving.api.schemas.images import Warnings
from codebrush.serving.api.schemas.values import DATA_URL, Pictures, Prompt, Strict, optional


class PicturesRequest(Strict):
    """Pictures to look at."""

    image: Pictures = Field(examples=[DATA_URL])
    model: str | None = optional("A pack that the server has. Default: its first.", max_length=200)


class ClassifyRequest(PicturesRequest):
    """Labels to choose among."""

    labels: Annotated[list[Prompt], Field(min_length=1, max_length=1000)] = Field(examples=[["a dog", "a cat"]])
    none: bool = Field(default=False, description='Also "none of these".')


class CaptionRequest(PicturesRequest):
    """How many captions to write."""

    n: int = Field(default=1, ge=1, le=10)


class AskRequest(PicturesRequest):
    """A question about each picture."""

    question: Prompt = Field(examples=["what colour is it?"])


class ExplainRequest(Strict):
    """A picture to look at, and the text or texts to look for in it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": DATA_URL, "text": "a red apple"}]})

    image: str = Field(description="A picture as a data URL, `data:image/png;base64,...`.")
    text: Prompt | None = optional("A text, taken literally: a map of it and of each of its words.")
    words: Annotated[list[Prompt], Field(min_length=1, max_length=16)] | None = optional(
        "In place of the text: words or short texts, each explained for itself."
    )
    method: Literal["auto", "gradient", "occlusion"] = Field(
        default="auto",
        description="By gradients of the image encoder, or by covering the picture part by part, which is slow.",
    )
    model: str | None = optional("A pack that the server has. Default: its first.", max_length=200)

    @model_validator(mode="after")
    def _one(self) -> "ExplainRequest":
        if (self.text is None) == (self.words is None):
            raise ValueError("give either text or words")
        return self


class LabelEntry(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class CaptionEntry(BaseModel):
    """A caption and CLIP's cosine with the picture."""

    text: str
    score: float


class AnswerEntry(BaseModel):
    """An answer, and the probability that the guess is right; below a threshold the answer is "I don't know"."""

    answer: str
    confidence: float
    guess: str


class LabelsReply(BaseModel):
    """One entry for each picture."""

    object: Literal["list"] = "list"
    model: str
    data: list[list[LabelEntry]]
    warnings: Warnings


class CaptionsReply(BaseModel):
    """One entry for each picture."""

    object: Literal["list"] = "list"
    model: str
    data: list[list[CaptionEntry]]
    warnings: Warnings


class AnswersReply(BaseModel):
    """One entry for each picture."""

    object: Literal["list"] = "list"
    model: str
    data: list[AnswerEntry]
    warnings: Warnings


class WordMap(BaseModel):
    """A word, by how much it raises the cosine, and its heat map."""

    word: str
    gain: float
    map: str | None = Field(description="PNG in base64; none if the text is this word: its map is that of the text.")


class FaithfulnessReply(BaseModel):
    """How true the map of the text is to the CLIP, by insertion (higher is better) and deletion (lower is better)."""

    insertion: float
    deletion: float
    insertion_random: float = Field(description="The mean of random maps.")
    deletion_random: float


class BetterThanRandom(BaseModel):
    """Whether a map does better than random ones."""

    insertion: bool
    deletion: bool


class ExplanationEntry(BaseModel):
    """What a picture has to do with a text. Maps are over the picture in grey, from dark blue (cold) to yellow."""

    text: str = Field(description="What was read of the text.")
    cosine: float
    method: Literal["gradient", "occlusion"]
    shown: bool = Field(description="Whether the picture shows what the text says.")
    level: float = Field(description="The share of texts about other things that fit the picture less, 0 to 1.")
    doubt: str | None = Field(description="One line if it hardly shows that.")
    map: str = Field(description="PNG in base64.")
    words: list[WordMap]
    words_without_map: list[str] = Field(description="Stop words, which show nothing in a picture.")
    faithfulness: FaithfulnessReply
    better_than_random: BetterThanRandom
    seen: float = Field(description="The share of the picture that the CLIP reads.")


class ExplanationsReply(BaseModel):
    """One entry for each text."""

    object: Literal["list"] = "list"
    model: str
    data: list[ExplanationEntry]
    warnings: Warnings
