"""A curation keeps screenshots that differ in small text alone, and drops their copies."""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from codebrush.data.curation.curate import curate
from codebrush.data.curation.near_duplicates import MAX_DISTANCE
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import open_source


def test_screenshots_with_other_small_text_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for number, letters in enumerate(("minimum ", "jellyfish ")):
        page = Image.new("RGB", (300, 400), "white")
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
        for top in range(20, 380, 16):
            draw.text((20, top), letters * (4 + top % (len(letters) - 4)), font=font, fill="black")
        page.save(folder / f"{number}.png")
        page.save(folder / f"{number}-again.jpg", quality=60)
        for name in (f"{number}", f"{number}-again"):
            (folder / f"{name}.txt").write_text("a page of text")
    options = CurationOptions(shares=(1.0, 0.0, 0.0), near=MAX_DISTANCE)
    report = curate(open_source(str(folder)), tmp_path / "out", options)
    assert report["dropped"] == {"near duplicate": 2}
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [Path(each["same_as"]).name for each in dropped] == ["0.png", "1.png"]
