"""Lines of the command line as callers of the server read them."""

import pytest

from codebrush.serving.studio import views
from codebrush.serving.wording import with_fields
from codebrush.training.packs.budget import spell_seconds


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--budget 60s is too short, or use --image-size 64", "budget 60s is too short, or use image_size 64"),
        ("it draws by --method guide only", "it draws by method guide only"),
        ("not drawn: --ar 3:2", "not drawn: --ar 3:2"),  # a user's own words
        ("apple--mask.png: no picture, --seed 5 is not drawn", "apple--mask.png: no picture, --seed 5 is not drawn"),
        ("run codebrush train PICTURES --budget 60m", "run codebrush train PICTURES --budget 60m"),
    ],
)
def test_flags_are_called_as_the_fields_are(line: str, said: str) -> None:
    assert with_fields(line) == said


def test_flags_are_called_as_a_form_labels_them() -> None:
    assert with_fields("as --image-size says", lambda name: name.replace("_", " ").capitalize()) == "as Image size says"


@pytest.mark.parametrize(
    ("seconds", "said", "flag"),
    [(45, "45 s", "45s"), (150, "2 min 30 s", "150s"), (240, "4 min", "4m"), (1801, "30 min", "31m")],
)
def test_times_are_told_as_long_as_they_are(seconds: float, said: str, flag: str) -> None:
    assert views.seconds(seconds) == said
    assert spell_seconds(seconds) == flag
