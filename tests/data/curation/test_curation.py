"""Curation: each bad row is dropped for its own reason, and the kept rows are unchanged in the shards."""

import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from codebrush.data.curation.caption_rules import CaptionRules
from codebrush.data.curation.curate import curate, decide
from codebrush.data.curation.measures import BYTES_PER_ROW, REASONS, Measures
from codebrush.data.curation.options import CurationOptions
from codebrush.data.curation.phrases import split_of
from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import CodebrushError, DataError, UsageError

PLAIN = CurationOptions(shares=(1.0, 0.0, 0.0), near=None)


def drawn(number: int) -> Image.Image:
    return scene(1, number, 64).image


def write(folder: Path, rows: Sequence[tuple[Image.Image | bytes, str]]) -> Path:
    """A folder of pictures with their captions in metadata.jsonl, `n` numbering the rows."""
    folder.mkdir()
    lines = []
    for number, (image, caption) in enumerate(rows):
        name = f"{number:03d}.png"
        image.save(folder / name) if isinstance(image, Image.Image) else (folder / name).write_bytes(image)
        lines.append(json.dumps({"file_name": name, "caption": caption, "n": number, "kind": f"kind {number % 7}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def numbers(folder: Path, **how: Any) -> list[int]:
    """The rows of the source that are in the shards."""
    source = open_source(folder, **how)
    return [source.row(index)["n"] for index in range(len(source))]


class NumberScorer:
    """Scores a caption by the number in it, "... 0.7", and records the sizes of the pictures."""

    def __init__(self) -> None:
        self.widths: set[tuple[int, int]] = set()

    def thumbnail(self, image: Image.Image) -> Image.Image:
        return image.resize((16, 16))

    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> list[float]:
        self.widths |= {picture.size for picture in pictures}
        return [max(float(caption.split()[-1]) for caption in own) for own in captions]


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Twelve rows, of which 0, 1, 9 and 11 are good."""
    first = drawn(0)
    lighter = Image.eval(first, lambda value: min(value + 3, 255))
    return write(
        tmp_path / "messy",
        [
            (first, "a red circle on white"),
            (drawn(1), "two blue squares"),
            (b"no picture at all", "a broken one"),
            (drawn(2).resize((20, 20)), "a small one indeed"),
            (drawn(3).resize((200, 50)), "a wide one indeed"),
            (drawn(4), "short"),
            (drawn(5), "far too many words to be a good caption of a picture"),
            (drawn(6), "красный круг на белом"),
            (first, "the same circle again"),
            (drawn(7), "a green triangle"),
            (lighter, "a circle a little lighter"),
            (drawn(8), "three yellow stars"),
        ],
    )


STRICT = replace(PLAIN, min_side=32, max_aspect=3, rules=CaptionRules(2, 8, None, "en"), near=4)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_each_row_is_dropped_for_its_reason(messy: Path, tmp_path: Path, kind: str):
    out = tmp_path / "out"
    report = curate(open_source(messy), out, replace(STRICT, kind=kind))
    assert report["dropped"] == {
        "unreadable": 1,
        "too small": 1,
        "too elongated": 1,
        "caption too short": 1,
        "caption too long": 1,
        "caption in another script": 1,
        "exact duplicate": 1,
        "near duplicate": 1,
    }
    assert (report["rows"], report["kept"], report["splits"], report["shards"]) == (12, 4, {"train": 4}, 1)
    assert numbers(out) == [0, 1, 9, 11]
    before, after = open_source(messy), open_source(out)
    for index, number in enumerate([0, 1, 9, 11]):
        assert after.captions(index) == before.captions(number)
        assert after.image(index).tobytes() == before.image(number).tobytes()
        assert after.row(index)["kind"] == f"kind {number % 7}"
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [line["row"] for line in dropped] == [2, 3, 4, 5, 6, 7, 8, 10]
    assert dropped[0]["detail"].startswith("not a picture of a known kind")
    assert (dropped[0]["path"], dropped[0]["reason"]) == ("002.png", "unreadable")
    assert (dropped[-2]["reason"], dropped[-2]["same_as"]) == ("exact duplicate", "000.png")
    assert (dropped[-1]["reason"], dropped[-1]["same_as"]) == ("near duplicate", "000.png")
    text = (out / "report.md").read_text()
    assert "4 of 12 rows are kept (33.3 %)" in text
    assert "| near duplicate            |    1 |  8.3 % |" in text
    for name in ("kept", "dropped"):
        with Image.open(out / f"{name}.png") as sheet:
            assert sheet.width > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messy", "out"]


def test_the_source_is_left_alone_and_the_same_rows_make_the_same_shards(messy: Path, tmp_path: Path):
    before = {path.name: path.read_bytes() for path in messy.iterdir()}
    for name in ("one", "two"):
        curate(open_source(messy), tmp_path / name, STRICT)
    assert {path.name: path.read_bytes() for path in messy.iterdir()} == before
    for file in ("train-00000.tar", "kept.png", "dropped.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bad_captions_of_a_good_row_are_left_out(tmp_path: Path):
    folder = tmp_path / "pets"
    folder.mkdir()
    drawn(0).save(folder / "a.png")
    (folder / "a.txt").write_text("a red circle\nx\na red circle\nкруг и круг\nround and red\n")
    curate(open_source(folder), tmp_path / "out", STRICT)
    assert open_source(tmp_path / "out").captions(0) == ["a red circle", "round and red"]


def scored(folder: Path) -> CaptionedImages:
    scores = (0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 0.55)
    return open_source(write(folder, [(drawn(number), f"score {value}") for number, value in enumerate(scores)]))


def test_rows_with_scores_below_a_threshold_are_dropped(tmp_path: Path):
    scorer = NumberScorer()
    report = curate(scored(tmp_path / "in"), tmp_path / "out", replace(PLAIN, min_score=0.55), scorer)
    assert numbers(tmp_path / "out") == [0, 4, 6, 8, 9]
    assert report["dropped"] == {"low score": 5}
    assert report["scores"]["kept"]["p50"] == pytest.approx(0.7)
    assert scorer.widths == {(16, 16)}
    assert open_source(tmp_path / "out").row(0)["clip_score"] == pytest.approx(0.9)


@pytest.mark.parametrize(("share", "left"), [(0.3, [0, 4, 6]), (1.0, list(range(10)))])
def test_the_best_share_is_kept(tmp_path: Path, share: float, left: list[int]):
    curate(scored(tmp_path / "in"), tmp_path / "out", replace(PLAIN, keep_top=share), NumberScorer())
    assert numbers(tmp_path / "out") == left


def test_of_duplicates_the_best_is_kept(tmp_path: Path):
    rows = [(drawn(0), "circle 0.3"), (drawn(0), "circle 0.8"), (drawn(1), "square 0.5"), (drawn(0), "circle 0.4")]
    folder = write(tmp_path / "in", rows)
    report = curate(open_source(folder), tmp_path / "out", replace(PLAIN, min_score=0.0), NumberScorer())
    assert numbers(tmp_path / "out") == [1, 2]
    assert report["dropped"] == {"exact duplicate": 2}


def test_a_bad_row_takes_no_good_one_with_it(tmp_path: Path):
    """A duplicate of a row that is dropped for its caption is kept."""
    folder = write(tmp_path / "in", [(drawn(0), "x"), (drawn(0), "a red circle")])
    curate(open_source(folder), tmp_path / "out", replace(PLAIN, rules=CaptionRules(2)))
    assert numbers(tmp_path / "out") == [1]


def measured(count: int, seed: int = 0) -> Measures:
    """The measures of noise pictures after the first pass."""
    rng = np.random.default_rng(seed)
    measures = Measures(count)
    measures.pixels[:] = rng.integers(0, 2**63, count)
    measures.shape[:] = rng.integers(0, 2**63, count)
    return measures


class Captions(NamedTuple):
    """The part of a source that `decide` uses."""

    texts: Sequence[str]

    def captions(self, row: int) -> list[str]:
        return [self.texts[row]]

    def contents(self, row: int) -> bytes:
        return b""  # no picture, so that fingerprints alone decide


def capped(texts: Sequence[str], **options: Any) -> Counter[str]:
    measures = measured(len(texts))
    decide(Captions(texts), measures, replace(PLAIN, **options))  # pyright: ignore[reportArgumentType]
    return Counter(texts[row] for row in measures.kept)


def test_common_phrases_come_down_to_the_cap_and_rare_ones_stay_whole():
    texts = ["a photo of a dog"] * 2_000 + ["a photo of a cat"] * 300 + ["a photo of a zebra"] * 20
    left = capped(texts, cap=100)
    assert left["a photo of a zebra"] == 20
    assert 70 <= left["a photo of a dog"] <= 130  # binomial: 100 expected, 3 deviations of 9.7
    assert 75 <= left["a photo of a cat"] <= 125
    assert capped(texts, cap=100) == left
    assert capped(texts, cap=100, seed=1) != left
    assert capped(texts, cap=5_000) == Counter(texts)


def test_other_rows_do_not_change_a_rows_luck():
    """Rows are drawn by their own hashes: in another order the same ones are kept."""
    texts = ["a dog"] * 500
    forward, backward = measured(500), measured(500)
    backward.pixels[:] = forward.pixels[::-1]
    for measures in (forward, backward):
        decide(Captions(texts), measures, replace(PLAIN, cap=100))  # pyright: ignore[reportArgumentType]
    assert set(forward.pixels[forward.kept]) == set(backward.pixels[backward.kept])
    assert 70 <= forward.kept.size <= 130


def test_a_split_without_a_concept_is_reported(tmp_path: Path):
    folder = write(tmp_path / "in", [(drawn(number), "always the same") for number in range(5)])
    report = curate(open_source(folder), tmp_path / "out", CurationOptions(shares=(0.9, 0.05, 0.05), near=None))
    assert sorted(report["splits"].values()) == [0, 0, 5]
    assert list(report["splits"]) == ["train", "val", "test"]


def test_given_phrases_are_what_is_capped():
    texts = ["a dog runs"] * 400 + ["a dog sleeps"] * 400 + ["rain"] * 400
    left = capped(texts, cap=50, phrases=("dog",))
    assert left["rain"] == 400
    assert 29 <= left["a dog runs"] + left["a dog sleeps"] <= 71
    assert set(capped(texts, phrases=("dog",), only_phrases=True)) == {"a dog runs", "a dog sleeps"}


def test_a_chain_of_small_changes_does_not_swallow_its_far_end():
    measures, near = measured(3), REASONS.index("near duplicate")
    measures.shape[:] = [0b0000, 0b0011, 0b1111]  # 0 and 2 differ twice as much as each does from 1
    decide(Captions(["x"] * 3), measures, replace(PLAIN, near=2))  # pyright: ignore[reportArgumentType]
    assert (measures.reason.tolist(), measures.twin.tolist()) == ([0, near, 0], [-1, 0, -1])


def test_splits_by_group_keep_it_together(tmp_path: Path):
    folder = write(tmp_path / "in", [(drawn(number), f"scene {number}") for number in range(30)])
    options = CurationOptions(shares=(0.5, 0.25, 0.25), by_group=True, near=None)
    report = curate(open_source(folder, group="kind"), tmp_path / "out", options)
    wanted = {
        split: [n for n in range(30) if split_of(f"kind {n % 7}", options.shares) == split]
        for split in report["splits"]
    }
    assert len(report["splits"]) > 1
    assert {split: numbers(tmp_path / "out", split=split) for split in report["splits"]} == wanted
    assert report["splits"] == {split: len(rows) for split, rows in wanted.items()}


def test_rows_of_an_empty_group_are_split_by_caption(tmp_path: Path):
    """Otherwise all of them would be one concept, and in one split."""
    captions = [f"Scene {number}!" for number in range(30)]
    folder = write(tmp_path / "in", [(drawn(number), caption) for number, caption in enumerate(captions)])
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for line in lines[3:]:
        line["kind"] = [None, "", " "][line["n"] % 3]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = CurationOptions(shares=(0.5, 0.25, 0.25), by_group=True, near=None)
    report = curate(open_source(folder, group="kind"), tmp_path / "out", options)
    concepts = [f"kind {n}" if n < 3 else f"scene {n}" for n in range(30)]
    wanted = Counter(split_of(concept, options.shares) for concept in concepts)
    assert report["splits"] == dict(wanted)
    assert len(wanted) == 3


def test_splits_by_caption_are_blind_to_its_spelling(tmp_path: Path):
    words = [
        f"{spelling}{number}" for number in range(8) for spelling in ("Red Circle ", "red  circle ", "red circle: ")
    ]
    folder = write(tmp_path / "in", [(drawn(number), word) for number, word in enumerate(words)])
    curate(open_source(folder), tmp_path / "out", CurationOptions(shares=(0.5, 0.5, 0.0), near=None))
    for split in ("train", "val"):
        found = Counter(number // 3 for number in numbers(tmp_path / "out", split=split))
        assert set(found.values()) == {3}


def test_shards_have_up_to_shard_rows(tmp_path: Path):
    folder = write(tmp_path / "in", [(drawn(number), f"scene {number}") for number in range(7)])
    report = curate(open_source(folder), tmp_path / "out", replace(PLAIN, shard_rows=3))
    assert report["shards"] == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar"))[-1] == "train-00002.tar"
    assert numbers(tmp_path / "out") == list(range(7))


def test_shards_can_be_curated_again(tmp_path: Path, messy: Path):
    """The columns that curation adds are no obstacle to the next one."""
    for first, second in (("tar", "parquet"), ("parquet", "tar")):
        once, twice = tmp_path / first, tmp_path / f"{first}2"
        curate(open_source(messy), once, replace(STRICT, kind=first))
        report = curate(open_source(once), twice, replace(PLAIN, kind=second))
        assert report["dropped"] == {}
        assert numbers(twice) == [0, 1, 9, 11]


def test_nothing_is_left_of_a_run_that_fails(messy: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="leaves none of 12 rows"):
        curate(open_source(messy), out, replace(PLAIN, min_side=5_000))
    assert not out.exists()

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(open_source(messy), out, STRICT, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["messy"]
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="already exists"):
        curate(open_source(messy), out, STRICT)


def test_a_picture_that_is_deleted_between_the_passes(messy: Path, tmp_path: Path):
    def remove(done: int, total: int) -> None:
        (messy / "009.png").unlink(missing_ok=True)

    report = curate(open_source(messy), tmp_path / "out", STRICT, progress=remove)
    assert report["dropped"]["unreadable"] == 2
    assert (report["kept"], numbers(tmp_path / "out")) == (3, [0, 1, 11])


def test_memory_is_what_is_stated():
    """5,000 rows of different hashes: their arrays, and what `decide` needs besides, mostly the near index."""
    tracemalloc.start()
    try:
        measures = measured(5_000)
        held = tracemalloc.get_traced_memory()[0]
        decide(Captions(["x"] * 5_000), measures, replace(PLAIN, near=4))  # pyright: ignore[reportArgumentType]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held / 5_000 == pytest.approx(BYTES_PER_ROW, rel=0.05)
    # At most five buckets a row, each with one row; shared by many rows they take 4 bytes. A byte for each pair of rows
    # would be eight times as much.
    assert (peak - held) / 5_000 < 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_aspect": 0.5}, "--max-aspect is long side over short: 1 or more"),
        ({"near": 16}, "--near is 0 to 15 bits, or -1"),
        ({"min_score": 0.2, "keep_top": 0.5}, "give --min-score or --keep-top, not both"),
        ({"keep_top": 0.0}, "--keep-top is a share above 0 and up to 1"),
        ({"cap": 0}, "--cap must be 1 or more"),
        ({"phrases": ("a",)}, "--phrases needs --cap or --only-phrases"),
        ({"only_phrases": True}, "--only-phrases needs --phrases"),
        ({"shares": (0.9, 0.2, 0.0)}, "train, val and test must be three numbers that add up to 1"),
        ({"kind": "zip"}, "--format is one of tar, parquet"),
        ({"shard_rows": 0}, "--shard-rows must be 1 or more"),
    ],
)
def test_options_out_of_range(change: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        replace(PLAIN, **change)


def test_a_folder_that_cannot_be_written(messy: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CodebrushError, match="file"):
        curate(open_source(messy), tmp_path / "file" / "out", STRICT)


def test_logos_and_plain_pictures_are_no_duplicates_and_the_best_copy_is_kept(tmp_path: Path):
    rows: list[tuple[Image.Image | bytes, str]] = []
    for box in ((20, 20, 140, 140), (60, 5, 90, 155), (5, 70, 155, 90)):
        logo = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(logo).ellipse(box, fill="white")
        rows.append((logo, "a white logo"))
    rows += [(Image.new("RGB", (64, 64), colour), f"plain {colour}") for colour in ("white", "white")]
    file = io.BytesIO()
    drawn(0).save(file, "WEBP", quality=95)
    rows += [(file.getvalue(), "a lossy copy"), (drawn(0), "the original")]
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "GIF", save_all=True, append_images=[drawn(1), drawn(2)])
    rows += [(drawn(1), "a still"), (file.getvalue(), "fades in from black to it")]
    report = curate(open_source(write(tmp_path / "d", rows)), tmp_path / "out", replace(PLAIN, near=8))
    assert (report["dropped"], report["plain"]) == ({"exact duplicate": 1, "near duplicate": 1}, 2)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(line["path"], line["same_as"], line.get("frame")) for line in dropped] == [
        ("005.png", "006.png", None),
        ("007.png", "008.png", None),
    ]
