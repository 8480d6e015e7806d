"""Near-duplicates are found however they were changed, and each cluster names the best picture to keep."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from codebrush.data.sources.unread import Unread
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import ImageError, UsageError
from codebrush.models.clip import CLIP
from codebrush.pack.pack import open_clip
from codebrush.search import duplicates
from codebrush.search.duplicates import compare, find_duplicates, near_pairs
from codebrush.search.pictures import Candidate, Source, open_pictures
from search_helpers import unit


@pytest.fixture(scope="module")
def clip(micro_pack: Path) -> CLIP:
    return open_clip(micro_pack)[0]


def _naive(embeddings: np.ndarray, shapes: np.ndarray, cosine: float, distance: int) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i in range(len(shapes))
        for j in range(i + 1, len(shapes))
        if float(embeddings[i] @ embeddings[j]) >= cosine and (int(shapes[i]) ^ int(shapes[j])).bit_count() <= distance
    }


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_pairs_equal_those_of_a_plain_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 16))
    kinds = rng.integers(0, 12, 100)
    embeddings = unit(centres[kinds] + 0.3 * rng.normal(size=(100, 16)))
    shapes = rng.integers(0, 2**63, 12).astype(np.uint64)[kinds] << np.uint64(1)
    shapes ^= np.uint64(1) << rng.integers(0, 64, 100).astype(np.uint64)
    monkeypatch.setattr(duplicates, "BLOCK", block)
    for cosine, distance in ((0.9, 2), (0.85, 1), (-1.0, 0), (0.9, 64)):
        expected = _naive(embeddings, shapes, cosine, distance)
        found = list(near_pairs(embeddings, shapes, cosine, distance))
        assert len(found) == len(set(found))
        assert set(found) == expected
        assert expected


def test_copies_are_found_and_the_best_is_named(clip: CLIP, tmp_path: Path) -> None:
    pictures = {f"{index}.png": scene(0, index, 128, objects=4).image for index in range(8)}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    pictures["0.png"].resize((64, 64)).save(tmp_path / "0-small.png")
    pictures["0.png"].save(tmp_path / "0-poor.jpg", quality=50)
    pictures["1.png"].save(tmp_path / "1-again.bmp")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    report = find_duplicates([open_pictures(str(tmp_path))], clip)
    clusters = {Path(each.representative).name: each for each in report.clusters}
    assert {name: {Path(path).name for path, _ in each.duplicates} for name, each in clusters.items()} == {
        "0.png": {"0-small.png", "0-poor.jpg"},
        "1-again.bmp": {"1.png"},  # as many pixels and more bytes
    }
    ((_, again),) = clusters["1-again.bmp"].duplicates
    assert (again.identical, again.distance) == (True, 0)
    assert all(not alike.identical and alike.distance <= 4 for _, alike in clusters["0.png"].duplicates)
    assert report.pictures == 11
    assert [(Path(each["path"]).name, each["reason"][:13]) for each in report.skipped] == [
        ("broken.png", "not a picture")
    ]


class Corner(CLIP):
    """Embeds a picture whose first pixel has the grey level G at an angle of G degrees."""

    def encode_image(self, images: Tensor) -> Tensor:
        angles = (images[:, 0, 0, 0] * 255).deg2rad()
        return F.pad(torch.stack([angles.cos(), angles.sin()], dim=1), (0, self.embed_dim - 2))


def test_chains_are_split_where_pictures_do_not_match(clip: CLIP, tmp_path: Path) -> None:
    """In the chain 0 - 1 - 2 - 3 - 4 only neighbours match: each cluster is around the best picture that is left."""
    picture = scene(0, 0, clip.image_size).image
    for number in range(5):
        picture.putpixel((0, 0), (10 * number,) * 3)
        picture.save(tmp_path / f"{number}.bmp")
    with open(tmp_path / "1.bmp", "ab") as file:
        file.write(b"more bytes than the others")
    report = find_duplicates([open_pictures(str(tmp_path))], Corner.from_config(clip.config), cosine=0.98, distance=0)
    clusters = [(Path(each.representative).stem, each.duplicates) for each in report.clusters]
    assert [(best, [Path(path).stem for path, _ in others]) for best, others in clusters] == [
        ("1", ["0", "2"]),
        ("3", ["4"]),
    ]
    assert min(alike.cosine for each in report.clusters for _, alike in each.duplicates) >= 0.98


def test_loose_thresholds_hold_for_every_member(clip: CLIP, tmp_path: Path) -> None:
    for index in range(12):
        scene(0, index, 32).image.save(tmp_path / f"{index}.png")
    (everything,) = find_duplicates([open_pictures(str(tmp_path))], clip, cosine=-1, distance=64).clusters
    cosines = sorted(alike.cosine for _, alike in everything.duplicates)
    least = cosines[len(cosines) // 2]
    clusters = find_duplicates([open_pictures(str(tmp_path))], clip, cosine=least, distance=40).clusters
    matches = [alike for each in clusters for _, alike in each.duplicates]
    assert matches
    assert all(alike.cosine >= least - 1e-5 and alike.distance <= 40 for alike in matches)


def test_a_picture_that_is_named_twice_is_not_a_duplicate(clip: CLIP, tmp_path: Path) -> None:
    scene(0, 0, 32).image.save(tmp_path / "0.png")
    sources = [open_pictures(str(place)) for place in (tmp_path, tmp_path / "0.png")]
    assert find_duplicates(sources, clip).clusters == []


def test_thresholds_out_of_range(clip: CLIP) -> None:
    for thresholds in ((1.5, 8), (0.9, 65), (0.9, -1), (float("nan"), 8)):
        with pytest.raises(UsageError, match="it must be between"):
            find_duplicates([], clip, *thresholds)


def test_two_pictures(clip: CLIP, tmp_path: Path) -> None:
    picture = scene(0, 0, 64).image
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    scene(0, 5, 64).image.save(tmp_path / "c.png")
    same = compare(clip, str(tmp_path / "a.png"), str(tmp_path / "b.bmp"))
    assert (same.identical, same.distance) == (True, 0)
    assert same.cosine == pytest.approx(1)
    other = compare(clip, str(tmp_path / "a.png"), str(tmp_path / "c.png"))
    assert not other.identical
    assert other.distance > 8
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        compare(clip, str(tmp_path / "a.png"), str(tmp_path / "none.png"))


def test_the_file_of_the_best_quality_is_named_whatever_its_ending_says(clip: CLIP, tmp_path: Path) -> None:
    picture = scene(0, 0, 96).image
    picture.save(tmp_path / "original.png")
    picture.save(tmp_path / "poor.webp", quality=100)
    with (tmp_path / "poor.webp").open("ab") as file:  # the most bytes
        file.write(bytes(200_000))
    picture.save(tmp_path / "poor.tif", format="JPEG", quality=90)
    for folder in ("#recycle", "Trash"):
        (tmp_path / folder).mkdir()
        picture.resize((192, 192)).save(tmp_path / folder / "original.png")
    places = [str(path) for path in sorted(tmp_path.rglob("*.*")) if path.is_file()]
    candidates = [Candidate(path, path, "", {}) for path in places]
    (cluster,) = find_duplicates([Source("here", len(candidates), candidates, Unread("here"))], clip).clusters
    assert cluster.representative == str(tmp_path / "original.png")
    assert len(cluster.duplicates) == 4


def test_of_a_file_and_links_to_it_the_file_is_the_one_to_keep(clip: CLIP, tmp_path: Path) -> None:
    scene(0, 0, 96).image.save(tmp_path / "b.png")
    for name in ("a.png", "c.png"):
        (tmp_path / name).symlink_to("b.png")
    places = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    candidates = [Candidate(path, path, "", {}) for path in places]
    (cluster,) = find_duplicates([Source("here", 3, candidates, Unread("here"))], clip).clusters
    assert cluster.representative == str(tmp_path / "b.png")


def test_logos_plain_pictures_and_animations_are_told_apart(clip: CLIP, tmp_path: Path) -> None:
    for name, box in (("a", (20, 20, 140, 140)), ("b", (60, 5, 90, 155)), ("c", (5, 70, 155, 90))):
        logo = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(logo).ellipse(box, fill="white")
        logo.save(tmp_path / f"{name}.png")
    logo.save(tmp_path / "c-again.png", compress_level=1)
    for name in ("white", "white-too"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"{name}.png")
    black = Image.new("RGB", (64, 64))
    for index in range(3):
        frames = [scene(0, index, 64).image, scene(0, index + 5, 64).image]
        black.save(tmp_path / f"{index}.gif", save_all=True, append_images=frames, duration=100)
    report = find_duplicates([open_pictures(str(tmp_path))], clip)
    found = [
        (Path(each.representative).name, [Path(path).name for path, _ in each.duplicates]) for each in report.clusters
    ]
    assert found == [("c-again.png", ["c.png"])]
    assert report.clusters[0].duplicates[0][1].identical
    assert [Path(path).name for path in report.plain] == ["white-too.png", "white.png"]
    assert {Path(path).name: frame for path, frame in report.frames.items()} == dict.fromkeys(
        ("0.gif", "1.gif", "2.gif"), 1
    )
    alike = compare(clip, str(tmp_path / "a.png"), str(tmp_path / "0.gif"))
    assert (alike.identical, alike.near_identical, alike.frames) == (False, False, (None, 1))
    plain = compare(clip, str(tmp_path / "white.png"), str(tmp_path / "white-too.png"))
    assert plain.identical


def test_shots_of_a_burst_are_no_duplicates(clip: CLIP, tmp_path: Path) -> None:
    for place in (200, 225):
        image = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
        ImageDraw.Draw(image).ellipse((place - 60, 140, place + 60, 260), fill="orange")
        image.save(tmp_path / f"{place}.jpg")
    source = open_pictures(str(tmp_path))
    assert find_duplicates([source], clip, cosine=-1).clusters == []
    assert len(find_duplicates([open_pictures(str(tmp_path))], clip, cosine=-1, distance=16).clusters) == 1


def test_a_pipe_is_not_waited_for(clip: CLIP, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(ImageError, match=r"p\.png: not a file"):
        compare(clip, str(tmp_path / "p.png"), str(tmp_path / "p.png"))


def test_changed_emoji(shared: Path, tmp_path: Path) -> None:
    """With the built-in pack: copies of real pictures are found, and few other pairs are matched."""
    clip = open_clip("emoji")[0]
    source = open_pictures(str(shared / "data" / "emoji.parquet"))
    count = 60
    candidates = iter(source.candidates)
    originals = [next(candidates) for _ in range(count)]
    for index, each in enumerate(originals):
        with Image.open(io.BytesIO(each.contents())) as image:
            white = Image.new("RGBA", image.size, "white")
            picture = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        picture.save(tmp_path / f"{index}.png")
        if index % 2:
            picture.resize((96, 96), Image.Resampling.LANCZOS).save(tmp_path / f"{index}-copy.jpg", quality=60)
    report = find_duplicates([open_pictures(str(tmp_path))], clip)
    pairs = {frozenset((each.representative, path)) for each in report.clusters for path, _ in each.duplicates}
    true = {frozenset(str(tmp_path / name) for name in (f"{i}.png", f"{i}-copy.jpg")) for i in range(1, count, 2)}
    assert len(true & pairs) >= 0.9 * len(true)
    assert len(pairs - true) <= 0.1 * len(true)


def test_pages_with_other_small_text_are_not_duplicates(clip: CLIP, tmp_path: Path) -> None:
    for number, letters in enumerate(("minimum ", "jellyfish ", "WAX ")):
        page = Image.new("RGB", (300, 400), "white")
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
        for top in range(20, 380, 16):
            text = (letters * 40)[:120]  # longer than any line
            while font.getlength(text) > 250 - 9 * ((top * (number + 3)) % 7):
                text = text[:-1]
            draw.text((20, top), text, font=font, fill="black")
        page.save(tmp_path / f"{number}.png")
        page.save(tmp_path / f"{number}.jpg", quality=60)
    found = find_duplicates([open_pictures(str(tmp_path))], clip, cosine=-1, distance=15).clusters
    assert [(Path(each.representative).name, [Path(path).name for path, _ in each.duplicates]) for each in found] == [
        (f"{number}.png", [f"{number}.jpg"]) for number in range(3)
    ]
    one, other = str(tmp_path / "0.png"), str(tmp_path / "1.png")
    assert not compare(clip, one, other).near_identical
