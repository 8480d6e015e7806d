"""The values that requests hold: texts, pictures, seeds, times; and what all requests have in common."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from codebrush.errors import UsageError
from codebrush.generation.options import parse_pair
from codebrush.text.prompts import MAX_PROMPT_LENGTH

MOST_SENT = 16  # pictures of a request
DATA_URL = (  # a red square on white
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEX////cHh7/Hx2WAAAAFElEQVR42mNgQAL8H5gYGDARMgAA"
    "I20BDofI/jkAAAAASUVORK5CYII="
)
Pictures = Annotated[
    str | Annotated[list[str], Field(min_length=1, max_length=MOST_SENT)],
    Field(description=f"A picture as a data URL, `data:image/png;base64,...`, or a list of up to {MOST_SENT}."),
]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH)]
Text = Annotated[str, Field(max_length=MAX_PROMPT_LENGTH)]
MOST_SEED = 2**63 - 1  # as in `codebrush.generation.options`
SEED_TEXT = r"^[0-9]{1,19}$"


def whole(value: Any) -> Any:
    """A whole number, also one that is sent as a text, of which JSON rounds nothing."""
    if isinstance(value, str):
        if not re.fullmatch(SEED_TEXT, value):
            raise ValueError("it must be a whole number, 0 or above")
        return int(value)
    if isinstance(value, bool):
        raise ValueError("it must be a whole number, not true or false")
    if isinstance(value, float) and abs(value) >= 2**53:
        raise ValueError("a number as large as this is rounded on the way: send it as a text of digits")
    return value


Seed = Annotated[
    int,
    Field(ge=0, le=MOST_SEED),
    BeforeValidator(whole),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MOST_SEED}, {"type": "string", "pattern": SEED_TEXT}]},
        mode="validation",
    ),
]


def _times(value: Any) -> Any:
    """Two numbers, also as forms send them, with a comma between."""
    if not isinstance(value, str):
        return value
    try:
        return parse_pair(value, "it", ",")
    except UsageError as error:
        raise ValueError(str(error)) from None


Interval = Annotated[
    tuple[float, float],
    BeforeValidator(_times),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                {"type": "string", "pattern": r"^[0-9.]+,[0-9.]+$"},
            ]
        },
        mode="validation",
    ),
]


class Strict(BaseModel):
    """A request, which has no other parameters than those named."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def optional(description: str, **limits: Any) -> Any:
    """A parameter that may be left out."""
    return Field(default=None, description=description, **limits)
