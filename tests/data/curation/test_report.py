"""The Markdown report of a curation: which options it names, and its tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from codebrush.data.curation.caption_rules import CaptionRules
from codebrush.data.curation.curate import curate
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.shapes import scene


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, "none but the defaults"),
        (
            {"near": None, "min_side": 8, "kind": "parquet", "rules": CaptionRules(2, 8, None, "en")},
            "--min-side 8 --near -1 --format parquet --min-words 2 --max-words 8 --language en",
        ),
        (
            {"phrases": ("circle", "square"), "only_phrases": True, "shares": (1.0, 0.0, 0.0)},
            "--phrases FILE (2 phrases) --only-phrases --shares 1,0,0",
        ),
    ],
)
def test_a_report_names_the_options_as_flags(given: dict[str, Any], flags: str, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(3):
        scene(0, number, 32).image.save(folder / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "caption": f"a circle | a square {number}"} for number in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    curate(open_source(folder), tmp_path / "out", CurationOptions(**given))
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.endswith(f"## Options\n\n    {flags}\n")
    assert "3 of 3 rows are kept (100.0 %), in " in text
    assert "## Dropped\n\nNothing.\n" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert tables
    assert all(len(set(map(len, lines))) == 1 for lines in tables)  # columns of even width
