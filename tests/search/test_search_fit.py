"""Databases whose pictures are read by another rule than the CLIP's own, and those that do not say one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.picture_fitting import FITS, Fit
from codebrush.errors import UsageError
from codebrush.search.database import create_database, open_database
from codebrush.search.indexing import index_pictures
from codebrush.search.pictures import open_pictures
from search_helpers import EMBEDDER


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A folder with pictures of 160 x 32 pixels, which differ in their right quarter alone."""
    (tmp_path / "wide").mkdir()
    for colour in ("red", "lime", "blue"):
        picture = Image.new("RGB", (160, 32), "white")
        picture.paste(Image.new("RGB", (40, 32), colour), (120, 0))
        picture.save(tmp_path / "wide" / f"{colour}.png")
    return tmp_path / "wide"


@pytest.mark.parametrize("fit", FITS)
def test_pictures_are_embedded_by_the_rule_of_their_database(
    brush: Codebrush, wide: Path, tmp_path: Path, fit: Fit
) -> None:
    database = create_database(tmp_path / "db", replace(EMBEDDER, fit=fit), brush.clip.embed_dim)
    assert index_pictures(database, [open_pictures(str(wide))], brush.clip, fit=fit).added == 3
    again = open_database(tmp_path / "db")
    assert again.embedder.fit == fit
    assert index_pictures(again, [open_pictures(str(wide))], brush.clip).unchanged == 3
    stored = {row["path"]: row["embedding"] for part in again.rows(["path", "embedding"]) for row in part.to_pylist()}
    vectors = torch.tensor([stored[str(wide / f"{colour}.png")] for colour in ("blue", "lime", "red")])  # (3, E)
    paths = [wide / "blue.png", wide / "lime.png", wide / "red.png"]
    torch.testing.assert_close(vectors, brush.embed_images(paths, again.embedder.fit))
    assert len(vectors.unique(dim=0)) == (1 if fit == "crop" else 3)
    other = "pad" if fit == "tiles" else "tiles"
    with pytest.raises(UsageError, match=f"was made with --fit {fit}: leave it out, or index into another --db"):
        index_pictures(again, [open_pictures(str(wide))], brush.clip, fit=other)
    assert again.count() == 3


def test_a_database_without_a_rule_has_that_of_its_clip(brush: Codebrush, wide: Path, tmp_path: Path) -> None:
    database = create_database(tmp_path / "db", EMBEDDER, brush.clip.embed_dim)
    assert set(json.loads(database.table.schema.metadata[b"codebrush"])) == {"format", "pack", "clip"}
    assert index_pictures(database, [open_pictures(str(wide))], brush.clip, fit="crop").added == 3
    assert index_pictures(database, [open_pictures(str(wide))], brush.clip).unchanged == 3
    with pytest.raises(UsageError, match="was made with --fit crop"):
        index_pictures(database, [open_pictures(str(wide))], brush.clip, fit="squeeze")


def test_the_commands_index_and_ask_by_the_same_rule(
    micro_pack: Path, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = ["--db", str(tmp_path / "db"), "--pack", str(micro_pack)]
    assert run(["index", str(wide), *db, "--fit", "tiles"]) == 0
    capsys.readouterr()
    assert run(["search", "--image", str(wide / "blue.png"), *db, "--json"]) == 0
    found = {Path(each["path"]).stem: each["score"] for each in json.loads(capsys.readouterr().out)["results"]}
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    query, *others = brush.embed_images([wide / f"{colour}.png" for colour in ("blue", "lime", "red")], "tiles")
    assert found["blue"] == pytest.approx(1, abs=1e-6)
    assert found["red"] == pytest.approx(float(query @ others[1]), abs=1e-6)
    assert not torch.equal(query, others[1])
    assert run(["index", str(wide), *db]) == 0  # an update needs no flag
    assert run(["index", str(wide), *db, "--fit", "crop"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("db was made with --fit tiles: leave it out, or index into another --db")
    assert run(["index", str(wide), *db, "--remove", "--fit", "tiles"]) == 2


def test_the_built_in_pack_finds_what_stands_at_the_end() -> None:
    brush = Codebrush.from_pretrained("emoji", device="cpu")
    pictures = []
    for colour in ((220, 30, 40), (250, 200, 20), (40, 90, 220)):
        pictures.append(Image.new("RGB", (512, 128), "white"))
        ImageDraw.Draw(pictures[-1]).ellipse((395, 14, 495, 114), fill=colour)
    texts = brush.embed_text(["a red circle", "a yellow circle", "a blue circle"])  # (3, E)
    cropped, tiled = (texts @ brush.embed_images(pictures, fit).T for fit in (None, "tiles"))  # (3, 3)
    assert torch.allclose(cropped, cropped[:, :1].expand(3, 3))  # three white pages
    assert tiled.argmax(1).tolist() == [0, 1, 2]
