"""What of a request reaches the file system: places in a library, and nothing else."""

import os
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')
pytest.importorskip("prometheus_client", reason='needs the extra "serve"')

from PIL import Image

from codebrush.errors import UsageError
from codebrush.serving.job import JobError
from codebrush.serving.library import Library


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(file)
    return file


@pytest.fixture
def library(tmp_path: Path) -> Library:
    picture(tmp_path / "pictures" / "cats" / "one.png")
    picture(tmp_path / "secret" / "two.png")
    return Library([tmp_path / "pictures"], tmp_path / "data")


def refused(library: Library, place: str) -> str:
    with pytest.raises(JobError) as caught:
        library.find(place)
    return caught.value.code


def test_a_place_is_a_file_or_folder_of_a_library(library: Library, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    places = {"pictures": root, "pictures/cats": root / "cats", "pictures/cats/one.png": root / "cats" / "one.png"}
    assert {place: library.find(place) for place in places} == places
    assert {path: library.place(path) for path in places.values()} == {path: place for place, path in places.items()}
    assert library.place(f"{root}/cats.csv#row 3") == "pictures/cats.csv#row 3"


@pytest.mark.parametrize(
    "place",
    [
        "pictures/..", "pictures/../secret", "pictures/cats/../../secret/two.png", "pictures/./cats",
        "pictures//cats", "file:///etc/passwd", "pictures/", "/", "//server/share", "pictures\\..\\secret",
        "pictures/..\\secret", "pictures/cats\0/one.png", "pictures/C:\\Windows",
    ],
)  # fmt: skip
def test_a_place_that_is_not_written_as_one_is_refused(library: Library, place: str) -> None:
    assert refused(library, place) == "invalid_path"


@pytest.mark.parametrize(
    "place",
    [
        "", "secret", "..", "/etc/passwd", "~", "C:/Windows", "pictures/dogs", "pictures/\ud800",
        f"pictures/{'x' * 5000}", "pictures/*", "owner/name", "PICTURES/cats\n",
    ],
)  # fmt: skip
def test_a_place_that_is_in_no_library_is_not_found(library: Library, place: str) -> None:
    assert refused(library, place) == "not_in_library"


def test_the_absolute_path_of_what_is_in_the_library_is_refused_too(library: Library, tmp_path: Path) -> None:
    assert refused(library, str(tmp_path / "pictures" / "cats")) == "not_in_library"


def test_links_are_followed_within_the_libraries_only(library: Library, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name, target in {
        "inside": root / "cats", "outside": tmp_path / "secret", "up": Path("../secret/two.png"), "root": Path("/"),
        "twice": root / "outside", "gone": tmp_path / "nowhere",
    }.items():  # fmt: skip
        os.symlink(target, root / name)
    assert library.find("pictures/inside/one.png") == root / "inside" / "one.png"
    for place in ("outside", "outside/two.png", "up", "root/etc/passwd", "twice/two.png", "gone"):
        assert refused(library, f"pictures/{place}") == "invalid_path"


def test_a_library_that_is_a_link_is_what_it_links_to(tmp_path: Path) -> None:
    picture(tmp_path / "there" / "one.png")
    os.symlink(tmp_path / "there", tmp_path / "here")
    assert Library([tmp_path / "here"], tmp_path / "data").find("there/one.png") == tmp_path / "there" / "one.png"


@pytest.mark.parametrize(
    ("link", "target"),
    [("cats/link.png", "secret/two.png"), ("cats/folder", "secret"), ("cats/up", ""), ("dogs/link.txt", "secret/x")],
)
def test_a_link_below_a_folder_that_leads_out_is_found(
    library: Library, tmp_path: Path, link: str, target: str
) -> None:
    root = tmp_path / "pictures"
    library.check_links(root)
    (root / link).parent.mkdir(exist_ok=True)
    os.symlink(root / "cats" / "one.png", root / "cats" / "fine.png")
    os.symlink(root / "cats", root / "cats" / "itself")  # without end, if it was followed each time
    library.check_links(root)
    os.symlink(tmp_path / target, root / link)
    with pytest.raises(JobError, match=f"'pictures/{link}' links to something outside the library") as caught:
        library.check_links(root)
    assert caught.value.code == "invalid_path"


def test_what_a_linked_folder_links_to_counts_too(library: Library, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "dogs").mkdir()
    os.symlink(root / "cats", root / "dogs" / "cats")
    library.check_links(root / "dogs")
    os.symlink(tmp_path / "secret", root / "cats" / "out")
    with pytest.raises(JobError, match="outside the library"):
        library.check_links(root / "dogs")


def test_libraries_of_one_name_have_numbers(tmp_path: Path) -> None:
    folders = [picture(tmp_path / place / "pictures" / "one.png").parent for place in "abc"]
    library = Library([*folders, folders[0]], tmp_path / "data")
    assert library.roots == dict(zip(("pictures", "pictures-2", "pictures-3"), folders, strict=True))


def test_what_is_no_folder_or_holds_the_results_of_callers_is_no_library(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", picture(tmp_path / "one.png")):
        with pytest.raises(UsageError, match="is no folder"):
            Library([folder], tmp_path / "data")
    with pytest.raises(UsageError, match="holds --data"):
        Library([tmp_path], tmp_path / "data")


def test_the_entries_of_a_folder(library: Library, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name in ("table.csv", "notes.txt", ".hidden.csv"):
        (root / name).write_text("file_name,caption\n")
    os.symlink(tmp_path / "secret", root / "outside")
    found = [(entry.place, entry.kind, entry.pictures) for entry in library.entries("pictures")]
    assert found == [("pictures/cats", "folder", 1), ("pictures/table.csv", "table", None)]


def test_ids_of_pictures_are_read_back_and_nothing_else_is_one(library: Library, tmp_path: Path) -> None:
    for path in (f"{tmp_path}/pictures/cats/one.png", f"{tmp_path}/pictures/cats.tar#a/b.png~2"):
        assert library.path_of(library.picture_id(path)) == path
    outside = library.picture_id(str(tmp_path / "secret" / "two.png"))
    for wrong in ("", "?", "é", "cGljdHVyZXM=x", outside, "x" * 4000):
        with pytest.raises(JobError) as caught:
            library.path_of(wrong)
        assert caught.value.code == "picture_not_found"


def test_without_a_library_there_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="start it with --library FOLDER") as caught:
        Library([], tmp_path).find("pictures")
    assert caught.value.code == "no_library"
