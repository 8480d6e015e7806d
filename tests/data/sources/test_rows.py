import json
import shutil
import warnings
from pathlib import Path

import pytest
from datasets import config, load_dataset
from written_sources import captions, write_parquet, write_tar

from codebrush.data.curation.curate import curate
from codebrush.data.curation.options import CurationOptions
from codebrush.data.sources.captioned_images import open_source
from codebrush.errors import DataError, ImageError


def test_folder_with_metadata_csv_keeps_texts_as_they_are(folder, picture):
    (folder / "a.png").write_bytes(picture("red"))
    (folder / "b.jpg").write_bytes(picture("blue", "JPEG"))
    rows = '\ufefffile_name,caption,n\nb.jpg,"NA, or null",007\na.png,"two\nlines",\n'
    (folder / "metadata.csv").write_text(rows, encoding="utf-8")
    source = open_source(folder)
    assert captions(source) == ["NA, or null", "two\nlines"]
    assert source.row(0) == {"caption": "NA, or null", "n": "007", "file_name": "b.jpg", "folder": "pets"}
    assert source.image(1).getpixel((0, 0)) == (255, 0, 0)
    assert source.name(0) == "b.jpg"
    assert len(open_source(folder, where=["n = 7"])) == 1


def test_folder_with_metadata_jsonl_in_subfolders(folder, picture):
    for name, colour in (("train", "red"), ("val", "blue")):
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "images" / "0.png").write_bytes(picture(colour))
        row = {"file_name": "images/0.png", "text": f"a {colour} thing", "facts": {"colour": colour, "n": 1}}
        (folder / name / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert captions(open_source(folder)) == ["a red thing", "a blue thing"]
    val = open_source(folder, split="val", captions=["{colour}"])
    assert captions(val) == ["blue"]
    assert val.image(0).getpixel((0, 0)) == (0, 0, 255)
    assert val.name(0) == "val/images/0.png"


def test_folder_with_texts_beside_has_one_caption_a_line(folder, picture):
    (folder / "cats").mkdir()
    (folder / "cats" / "x.final.png").write_bytes(picture())
    (folder / "cats" / "x.final.txt").write_text("a cat\n\n  a sleeping cat \n", encoding="utf-8")
    (folder / ".DS_Store").write_bytes(b"junk")
    (folder / "cats" / "._x.png").write_bytes(b"junk")
    assert captions(open_source(folder)) == ["a cat | a sleeping cat"]


def test_folder_names_serve_as_labels(folder, picture):
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
        (folder / kind / "1.png").write_bytes(picture())
    assert captions(open_source(folder, captions=["a photo of a {folder}"])) == [
        "a photo of a cat",
        "a photo of a dog",
    ]


@pytest.mark.parametrize("described_by", ["txt", "metadata"])
def test_pictures_without_a_caption_are_counted_and_the_first_named(folder, picture, described_by):
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(picture())
    if described_by == "txt":
        (folder / "b.txt").write_text("bee")
        (folder / "c.txt").write_text(" \n")
        column = "captions"
    else:
        (folder / "metadata.csv").write_text("file_name,caption\nb.png,bee\n")
        column = "caption"
    source = open_source(folder)
    assert captions(source) == ["bee"]
    assert source.unread.named == [("a.png", "no caption; 2 of 3 pictures have none, and are left out")]
    with pytest.raises(DataError, match=r"a\.png: no caption; 2 of 3 pictures have none"):
        open_source(folder, strict=True)
    assert captions(open_source(folder, where=[f"{column} is not null"], strict=True)) == ["bee"]
    assert len(open_source(folder, require_captions=False, strict=True)) == 3


def test_metadata_may_name_a_picture_that_is_gone(folder, picture):
    (folder / "a.png").write_bytes(picture())
    (folder / "metadata.csv").write_text("file_name,caption\nb.png,bee\na.png,ay\n")
    source = open_source(folder)
    assert captions(source) == ["bee", "ay"]
    with pytest.raises(ImageError, match=r"^b\.png: no such file"):
        source.image(0)


def test_lists_of_files(tmp_path, folder, picture):
    (folder / "a.png").write_bytes(picture("blue"))
    (tmp_path / "list.csv").write_text("image_path,caption\npets/a.png,ay\n")
    (tmp_path / "list.jsonl").write_text('{"path": "pets/a.png", "captions": ["ay", "bee"]}\n')
    for name, expected in (("list.csv", ["ay"]), ("list.jsonl", ["ay | bee"])):
        source = open_source(tmp_path / name)
        assert captions(source) == expected
        assert source.image(0).getpixel((0, 0)) == (0, 0, 255)


def test_relative_source_survives_a_change_of_folder(tmp_path, folder, picture, monkeypatch):
    (folder / "a.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    source = open_source("pets", captions=["x"])
    monkeypatch.chdir("/")
    assert source.image(0).size == (9, 7)


def test_parquet_may_hold_bytes_or_paths(tmp_path, folder, picture):
    (folder / "a.png").write_bytes(picture("blue"))
    for name, cells in (("bytes", [picture("blue")]), ("paths", ["pets/a.png"])):
        path = write_parquet(tmp_path / f"{name}.parquet", image=cells, text=["x"])
        assert open_source(path).image(0).getpixel((0, 0)) == (0, 0, 255)


def test_splits_of_a_folder_laid_out_as_on_the_hub(tmp_path, picture):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        cells = [{"bytes": picture(), "path": None}]
        write_parquet(tmp_path / "set" / "data" / f"{name}.parquet", image=cells, text=[name])
    (tmp_path / "set" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert captions(open_source(tmp_path / "set", split="test")) == ["test-00000-of-00001"]
    assert len(open_source(tmp_path / "set", split="train")) == 2
    assert len(open_source(tmp_path / "set")) == 3
    with pytest.raises(DataError, match="no split val; there are test, train"):
        open_source(tmp_path / "set", split="val")


@pytest.mark.parametrize("described_by", ["txt", "metadata", "nothing"])
def test_pictures_are_not_hidden_by_a_table_among_them(folder, picture, described_by):
    """A stray archive, intact or damaged, is not read instead of the pictures, and gives a warning."""
    (folder / "old").mkdir()
    for name in ("a.png", "old/b.png"):
        (folder / name).write_bytes(picture())
        if described_by == "txt":
            (folder / name).with_suffix(".txt").write_text(name)
    if described_by == "metadata":
        (folder / "metadata.csv").write_text("file_name,caption\na.png,a.png\nold/b.png,old/b.png\n")
    write_tar(folder / "old" / "backup.tar", {"0.png": picture(), "0.txt": "from the archive"})
    (folder / "broken.tar").write_bytes(b"nope")
    (folder / "empty.TAR").write_bytes(b"")
    write_parquet(folder / "index.parquet", image=[picture()], text=["from the table"])
    with pytest.warns(UserWarning, match="not 4 of another kind") as warned:
        source = open_source(
            folder, require_captions=False, captions=["{file_name}"] if described_by == "nothing" else ()
        )
    assert captions(source) == ["a.png", "old/b.png"]
    assert [str(each.message) for each in warned] == [
        f"{folder}: reads the 2 picture files in it, but not 4 of another kind "
        "(index.parquet, broken.tar, empty.TAR, ...); to read those, name them"
    ]
    assert captions(open_source(folder / "old" / "backup.tar")) == ["from the archive"]


def test_tables_of_a_hub_data_set_are_not_hidden_by_its_illustrations(tmp_path, picture):
    write_parquet(tmp_path / "set" / "data" / "train-0.parquet", image=[picture()], text=["row"])
    (tmp_path / "set" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "set" / "banner.png").write_bytes(picture())
    with pytest.warns(UserWarning, match=r"reads the 1 \.parquet files in it, but not 1 of .*\(banner\.png\)"):
        assert captions(open_source(tmp_path / "set")) == ["row"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_of_a_curation_are_read_beside_its_sheets(folder, picture, kind):
    for name, colour in (("a", "red"), ("b", "blue")):
        (folder / f"{name}.png").write_bytes(picture(colour))
        (folder / f"{name}.txt").write_text(name)
    (folder / "c.png").write_bytes(b"damaged")
    curate(
        open_source(folder, require_captions=False),
        folder / "curated",
        CurationOptions(shares=(1.0, 0.0, 0.0), kind=kind, near=None),
    )
    assert {"kept.png", "dropped.png"} < {path.name for path in (folder / "curated").iterdir()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions(open_source(folder / "curated")) == ["a", "b"]
    with pytest.warns(UserWarning, match=rf"reads the 3 picture .*\(curated/train-00000\.{kind}\)"):
        assert len(open_source(folder, require_captions=False)) == 3  # the sheets do not belong to the data


def test_glob_of_parquet(tmp_path, picture):
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", image=[picture()], text=[name])
    assert captions(open_source(str(tmp_path / "*.parquet"))) == ["a", "b"]
    with pytest.raises(DataError, match="no file matches"):
        open_source(str(tmp_path / "*.tar"))


def test_file_names_with_glob_characters_are_taken_literally(tmp_path, picture):
    folder = tmp_path / "set [v2] *"
    write_parquet(folder / "a[1].parquet", image=[picture()], text=["x"])
    assert captions(open_source(folder / "a[1].parquet")) == ["x"]
    assert captions(open_source(folder)) == ["x"]


def test_webdataset_shards(tmp_path, picture):
    path = write_tar(
        tmp_path / "a.tar",
        {
            "./README.md": "not a sample",
            "set/0.jpg": picture("red", "JPEG"),
            "set/0.txt": "a red thing\n",
            "set/0.json": json.dumps({"kind": "x", "n": 3, "tags": ["a", "b"], "odd": 1}),
            "set/1.png": picture("blue"),
            "set/1.json": json.dumps({"kind": "y", "n": 4, "odd": "word", "deep": {"er": 5}}),
            "set/1.txt": "a blue thing",
            "set/._1.txt": "junk",
            "set/2.PNG": picture("lime"),
            "set/2.txt": "a lime thing",
        },
    )
    source = open_source(path)
    assert captions(source) == ["a red thing", "a blue thing", "a lime thing"]
    assert [source.image(index).getpixel((0, 0)) for index in (1, 2)] == [(0, 0, 255), (0, 255, 0)]
    row = source.row(1)
    assert (row["kind"], row["n"], row["odd"], row["er"], row["tags"]) == ("y", 4, "word", 5, None)
    assert source.name(1) == "set/1"
    assert captions(open_source(path, where=["n > 3"], captions=["{kind}"])) == ["y"]
    assert captions(open_source(path, where=["tags = b"], captions=["{odd} {tags}"])) == ["1 a, b"]


def test_webdataset_folder_has_its_splits_in_its_names(tmp_path, picture):
    for name in ("train-000", "train-001", "val-000"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": picture(), "0.txt": name})
    assert captions(open_source(tmp_path, split="train")) == ["train-000", "train-001"]
    assert captions(open_source(str(tmp_path / "train-*.tar"))) == ["train-000", "train-001"]


def test_changed_shard_is_read_anew(tmp_path, picture):
    write_tar(tmp_path / "a.tar", {"0.png": picture(), "0.txt": "before"})
    assert captions(open_source(tmp_path / "a.tar")) == ["before"]
    write_tar(tmp_path / "a.tar", {"0.png": picture(), "0.txt": "after, and longer" * 1000})
    assert captions(open_source(tmp_path / "a.tar"))[0].startswith("after")


def test_damaged_shards_give_their_whole_samples(tmp_path, picture):
    whole = write_tar(tmp_path / "a.tar", {"0.png": picture(), "0.txt": "one", "0.json": "{broken", "1.png": picture()})
    source = open_source(whole)
    assert captions(source) == ["one"]
    assert (f"{whole}: 0.json", "not a JSON object") in source.unread.named
    short = tmp_path / "short.tar"
    short.write_bytes(whole.read_bytes()[: 7 * 512])  # the last picture has its header and no content
    source = open_source(short)
    assert captions(source) == ["one"]
    assert (str(short), "cut off or damaged after 1 whole sample") in source.unread.named
    (tmp_path / "nothing.tar").write_bytes(whole.read_bytes()[:530])
    with pytest.raises(DataError, match=r"nothing\.tar: no sample in this shard; .*: not a whole tar file"):
        open_source(tmp_path / "nothing.tar")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"nope", "cannot be read: .+"),
        ("a.jsonl", b'{"file_name": \n', "has no rows; .*a.jsonl, line 1: not JSON"),
        ("a.csv", b"", "cannot be read: it has no rows"),
        ("head.csv", b"file_name,caption\n", "cannot be read: it has no rows"),
        ("a.tar", b"nope", "no sample in this shard; .*: not a whole tar file"),
        ("empty.tar", b"", "no sample in this shard; .*: not a whole tar file"),
        ("page.tar", b"<html>" * 200, "no sample in this shard; .*: not a whole tar file"),
        ("latin.csv", b"file_name,caption\na.png,caf\xe9\n", "has no rows; .*latin.csv, line 2: not UTF-8 text"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path, name, content, reason, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {reason}") as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda place: place / "gone", "gone: no such file or folder"),
        (lambda place: "gone.parquet", r"gone\.parquet: no such file or folder"),
        (lambda place: "gone/deep.tar", "no such file or folder"),
        (lambda place: place, "no picture in this folder"),
        (lambda place: place / "words.docx", "not a data set; give .parquet"),
    ],
)
def test_sources_that_do_not_exist(tmp_path, prepare, message):
    source = prepare(tmp_path)
    if str(source).endswith(".docx"):
        source.write_text("words")
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_table_without_pictures_names_its_columns(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", label=["a"], n=[1])
    with pytest.raises(DataError, match="no column holds pictures; there are label, n"):
        open_source(path)


def test_several_picture_columns_need_a_choice(tmp_path, picture):
    path = write_parquet(tmp_path / "a.parquet", before=[picture("red")], after=[picture("blue")], text=["x"])
    with pytest.raises(DataError, match=r"several columns hold pictures \(before, after\)"):
        open_source(path)
    assert open_source(path, image_column="after").image(0).getpixel((0, 0)) == (0, 0, 255)


def test_offline_hub_is_one_line(monkeypatch):
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as caught:
        open_source("codebrush-tests/not-there")
    assert "\n" not in str(caught.value)


def test_unreachable_hub_is_one_line_at_once(monkeypatch):
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(DataError, match=r"the hub does not answer \(.+\); correct the name") as caught:
        open_source("codebrush-tests/not-there")
    assert "\n" not in str(caught.value)


def test_hub_id_is_read_from_what_was_fetched_before(tmp_path, monkeypatch, picture):
    """An earlier download is in the cache of `datasets`, under owner___name, for use offline."""
    write_parquet(tmp_path / "colours" / "train.parquet", image=[picture()], text=["from the hub"])
    load_dataset(str(tmp_path / "colours"))
    cache = Path(config.HF_DATASETS_CACHE)
    (cache / "colours").rename(cache / "codebrush-tests___colours")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    source = open_source("codebrush-tests/colours", split="train")
    assert captions(source) == ["from the hub"]
    assert source.image(0).getpixel((0, 0)) == (255, 0, 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache-of-datasets")
    yield
    shutil.rmtree(tmp_path / "cache-of-datasets", ignore_errors=True)
