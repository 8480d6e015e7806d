"""The values that requests hold: texts, pictures, seeds, times; and what all requests have in common."""

import re
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

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


FROM_FORM = {"form": True}  # the context of what a form sent, whose values are all texts


class Strict(BaseModel):
    """A request, which has no other parameters than those named. In JSON a number is no text, and true is no 1."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)])
        numbers = kinds & {int, float}
        if isinstance(value, bool) and numbers and bool not in kinds:
            raise ValueError("it must be a number, not true or false")
        if isinstance(value, int | float) and not isinstance(value, bool) and bool in kinds and not numbers:
            raise ValueError("it must be true or false, not a number")
        if isinstance(value, str) and kinds <= {int, NoneType} and info.context == FROM_FORM and value.isdecimal():
            return int(value)  # one of several numbers is compared as it is
        if isinstance(value, str) and kinds <= {int, float, bool, NoneType} and info.context != FROM_FORM:
            raise ValueError(f"it must be {'a number' if numbers else 'true or false'}, not a text")
        return value


def _kinds(field: Any) -> frozenset[Any]:
    """The types that a field takes; `object` if it reads values in a way of its own."""
    if any(isinstance(each, BeforeValidator) for each in field.metadata):
        return frozenset({object})
    return _named(field.annotation)


@cache
def _named(annotation: Any) -> frozenset[Any]:
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        own = any(isinstance(each, BeforeValidator) for each in parts[1:])
        return frozenset({object}) if own else _named(parts[0])
    if get_origin(annotation) is Literal:
        return frozenset(type(each) for each in parts)
    if get_origin(annotation) in (Union, UnionType):
        return frozenset().union(*map(_named, parts))
    return frozenset({get_origin(annotation) or annotation})


def optional(description: str, **limits: Any) -> Any:
    """A parameter that may be left out."""
    return Field(default=None, description=description, **limits)
