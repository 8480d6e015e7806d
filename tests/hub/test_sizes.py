import pytest

from codebrush.hub.download import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "?"), (12, "12 bytes"), (4_186, "4.2 kB"), (353_976_522, "354 MB"), (1_335_425_809, "1.3 GB")],
)
def test_sizes_read_well(size: int | None, text: str) -> None:
    assert size_text(size) == text
