"""Options that are texts: sizes, amounts of memory, and names with weights and stops."""

import pytest

from codebrush.errors import UsageError
from codebrush.generation.guided.option_values import parse_bytes, split_weights
from codebrush.generation.options import parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2 * 2**30), ("1.5 gib", 3 * 2**29), ("800M", 800 * 10**6), ("3kb", 3000), ("7", 7), (".5T", 5 * 10**11)],
)
def test_sizes_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_sizes_of_pictures() -> None:
    assert parse_size("128x96") == parse_size("128X96") == (128, 96)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png", ("a.png", 1.0, None)),
        ("a.png:0.5", ("a.png", 0.5, None)),
        ("a.png:-2:0.4", ("a.png", -2.0, 0.4)),
        ("C:\\pictures\\a.png", ("C:\\pictures\\a.png", 1.0, None)),
        ("C:\\pictures\\a.png:2", ("C:\\pictures\\a.png", 2.0, None)),
        ("12:30:a.png:1", ("12:30:a.png", 1.0, None)),
        ("7", ("7", 1.0, None)),
        ("7:0.5:0.1", ("7", 0.5, 0.1)),
        ("3:1:2:4", ("3:1", 2.0, 4.0)),
        ("a.png: 2", ("a.png: 2", 1.0, None)),
        ("a.png:2 ", ("a.png:2 ", 1.0, None)),
        ("a.png:1_0", ("a.png:1_0", 1.0, None)),
        ("a.png:٣", ("a.png:٣", 1.0, None)),
        (":2", (":2", 1.0, None)),
    ],
)
def test_numbers_are_read_from_the_right(text: str, expected: tuple[str, float, float | None]) -> None:
    assert split_weights(text) == expected


@pytest.mark.parametrize("text", ["a.png:101", "a.png:-100.1", "a.png:nan", "a.png:1e999", "a.png:inf:1"])
def test_weights_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^the weight of {text} must lie between -100 and 100$"):
        split_weights(text)


@pytest.mark.parametrize("text", ["a.png:1:nan", "a.png:1:-inf", "a.png:1:1e999"])
def test_stops_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^the stop of {text} must be a finite number"):
        split_weights(text)
