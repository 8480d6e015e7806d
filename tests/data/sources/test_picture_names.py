"""Tables whose pictures lie in other folders, or whose column of file names has a name of its own."""

import warnings
from pathlib import Path

import pytest

from codebrush.data.sources.captioned_images import CaptionedImages, open_source
from codebrush.data.sources.rows import load_rows
from codebrush.errors import DataError
from codebrush.search.pictures import open_pictures

SHOP = "filename;caption;price\nArtikel 1.png;Sch\u00f6ner Apfel;0,99\nArtikel 2.png;T\u00fcte;1,99\n"
OWN = "Bildname;Bezeichnung;Preis\nArtikel 1.png;Apfel;0,99\nArtikel 2.png;T\u00fcte;1,99\n"
COLOURS = {"Artikel 1.png": "red", "Artikel 2.png": "blue"}


@pytest.fixture
def shop(tmp_path: Path, picture) -> Path:
    """shop/Fotos/Artikel 1.png is red, Artikel 2.png blue."""
    (tmp_path / "shop" / "Fotos").mkdir(parents=True)
    for name, colour in COLOURS.items():
        (tmp_path / "shop" / "Fotos" / name).write_bytes(picture(colour))
    return tmp_path / "shop"


def opened(source: Path, **named) -> CaptionedImages:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_source(source, require_captions=False, **named)


def shown(source: CaptionedImages) -> dict[str, tuple[int, ...]]:
    """The first caption of each row, and the colour of its picture."""
    return {" | ".join(source.captions(index)): source.image(index).getpixel((0, 0)) for index in range(len(source))}


@pytest.mark.parametrize("table", ["artikel.csv", "metadata.csv", ""])
def test_bare_names_are_found_in_the_folders_below(shop: Path, table: str) -> None:
    (shop / (table or "artikel.csv")).write_text(SHOP, encoding="utf-8-sig")
    source = opened(shop if table else shop / "artikel.csv")
    assert shown(source) == {"Sch\u00f6ner Apfel": (255, 0, 0), "T\u00fcte": (0, 0, 255)}
    assert source.cell(1, "price") == "1,99"
    assert not source.unread.lines


@pytest.mark.parametrize("is_named", [False, True])
def test_a_name_without_its_ending_is_found_below_too(shop: Path, is_named: bool) -> None:
    (shop / "list.csv").write_text("image,text\nArtikel 2,bag\nArtikel 1,apple\n")
    source = opened(shop / "list.csv" if is_named else shop)
    assert shown(source) == {"bag": (0, 0, 255), "apple": (255, 0, 0)}


@pytest.mark.parametrize("is_named", [False, True])
def test_a_name_in_several_folders_is_named_with_them(shop: Path, picture, is_named: bool) -> None:
    (shop / "Alt").mkdir()
    for name in COLOURS:
        (shop / "Alt" / name).write_bytes(picture("green"))
    (shop / "artikel.csv").write_text(SHOP, encoding="utf-8")
    rows = load_rows(str(shop / "artikel.csv" if is_named else shop))
    ((item, reason),) = rows.unread.named
    assert item == str(shop / "artikel.csv")
    assert reason.startswith("names Artikel 1.png, which is in Alt/ and Fotos/: write paths from the table's folder, ")
    assert reason.endswith("like Alt/Artikel 1.png" + " (2 rows are like this)" * is_named)
    assert not rows.unread.counted


@pytest.mark.parametrize("is_named", [False, True])
def test_a_name_in_another_folder_is_not_guessed(shop: Path, is_named: bool) -> None:
    (shop / "list.csv").write_text("image,text\nold/Artikel 2.png,bag\n")
    rows = load_rows(str(shop / "list.csv" if is_named else shop))
    ((_, reason),) = rows.unread.named
    assert reason.startswith("names old/Artikel 2.png, which is in Fotos/: write paths from the table's folder, like F")


def test_whole_paths_of_another_computer_in_a_named_table_are_read_by_their_ends(shop: Path) -> None:
    (shop / "list.csv").write_text("image,text\nC:\\shop\\Fotos\\Artikel 2.png,bag\n")
    source = opened(shop / "list.csv")
    assert shown(source) == {"bag": (0, 0, 255)}
    (note,) = source.unread.notes
    assert note.endswith("C:/shop/Fotos/Artikel 2.png is read as Fotos/Artikel 2.png, and others so")


def test_only_folders_below_the_table_count(shop: Path) -> None:
    (shop / "lists").mkdir()
    (shop / "lists" / "artikel.csv").write_text(SHOP, encoding="utf-8")
    rows = load_rows(str(shop))
    assert rows.text.column_names == ["file_name", "captions", "folder"]
    assert dict(rows.unread.counted) == {".csv file": 1}


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_of_file_names_is_known_by_its_cells(shop: Path, is_named: bool, ending: str) -> None:
    text = OWN
    if ending == "jsonl":
        text = '{"Preis": 1, "Bildname": "Artikel 1.png", "Bezeichnung": "Apfel"}\n'
    (shop / f"Artikel.{ending}").write_text(text, encoding="utf-8")
    source = opened(shop / f"Artikel.{ending}" if is_named else shop, captions=["{Bezeichnung}"])
    assert shown(source)["Apfel"] == (255, 0, 0)
    note = f"Artikel.{ending}: its column Bildname is read as the file names, because its cells are names of pictures"
    assert source.unread.notes == [note]


@pytest.mark.parametrize("is_named", [False, True])
def test_an_index_without_captions_knows_which_columns_could_be_theirs(shop: Path, is_named: bool) -> None:
    (shop / "Artikel.csv").write_text(OWN, encoding="utf-8")
    with pytest.warns(UserWarning, match="is read as the file names"):
        source = open_pictures(str(shop / "Artikel.csv" if is_named else shop))
    assert source.captionless == ["Bezeichnung", "Preis"]


def test_the_column_can_be_named(shop: Path) -> None:
    (shop / "a.csv").write_text("path,Bild,caption\nArtikel 2.png,Artikel 1.png,x\n")
    for place in (shop, shop / "a.csv"):
        assert shown(opened(place, image_column="Bild"))["x"] == (255, 0, 0)
        assert shown(opened(place))["x"] == (0, 0, 255)
    with pytest.raises(DataError, match="no column Foto; there are"):
        load_rows(str(shop), "Foto")
    (shop / "b.csv").write_text("Bild,caption\nnowhere.png,x\n")
    with pytest.raises(DataError, match=r"no column holds pictures; .*: name theirs with --image-column"):
        load_rows(str(shop / "b.csv"))


@pytest.mark.parametrize(("header", "expected"), [("fetched,day", "a thing"), ("fetched,caption", "monday")])
def test_a_list_without_captions_does_not_displace_caption_files(
    folder: Path, picture, header: str, expected: str
) -> None:
    (folder / "0.png").write_bytes(picture())
    (folder / "0.txt").write_text("a thing")
    (folder / "log.csv").write_text(f"{header}\n0.png,monday\n")
    assert list(shown(opened(folder))) == [expected]


def test_rows_in_another_encoding_are_named_with_the_remedy(shop: Path) -> None:
    (shop / "artikel.csv").write_bytes(SHOP.encode("cp1252") + b"Artikel 2.png;bag;1\n")
    source = opened(shop)
    remedy = 'not UTF-8 text; save it as UTF-8 (Excel: "CSV UTF-8")'
    assert source.unread.named == [(f"{shop / 'artikel.csv'}, line {line}", remedy) for line in (2, 3)]
    assert source.unread.notes == ["artikel.csv: 2 rows of it could not be read: their pictures have no caption"]


@pytest.mark.parametrize("text", [SHOP, OWN.replace("Apfel", "\u00c4pfel")])
def test_a_table_wholly_in_another_encoding_is_named(shop: Path, text: str) -> None:
    (shop / "artikel.csv").write_bytes(text.encode("cp1252"))
    (shop / "prices.csv").write_bytes("Tag;Preis\nM\u00e4rz;1\n".encode("cp1252"))  # of no pictures: counted
    unread = opened(shop).unread
    assert unread.named == [(str(shop / "artikel.csv"), 'not UTF-8 text; save it as UTF-8 (Excel: "CSV UTF-8")')]
    assert dict(unread.counted) == {".csv file": 1}


@pytest.mark.parametrize("is_named", [False, True])
def test_the_unicode_text_of_excel_is_a_table(shop: Path, is_named: bool) -> None:
    (shop / "artikel.txt").write_bytes(SHOP.replace(";", "\t").replace("\n", "\r\n").encode("utf-16"))
    (shop / "notes.txt").write_text("of no\tpicture\n")
    (shop / "more.txt").write_text("Artikel 1.png without tabs\n")
    source = opened(shop / "artikel.txt" if is_named else shop)
    assert shown(source) == {"Sch\u00f6ner Apfel": (255, 0, 0), "T\u00fcte": (0, 0, 255)}
    assert dict(source.unread.counted) == ({} if is_named else {".txt file": 2})


def test_a_caption_with_a_tab_is_a_caption(folder: Path, picture) -> None:
    (folder / "0.png").write_bytes(picture())
    (folder / "0.txt").write_text("image\ttext\n")
    assert list(shown(opened(folder))) == ["image\ttext"]


def test_a_table_with_no_other_column_gives_its_pictures(shop: Path) -> None:
    """One of its rows names no picture, so that rows are chosen: what is left has no column but that of the names."""
    (shop / "Fotos" / "metadata.csv").write_text('Bildname\nArtikel 1.png\n"\n",\nArtikel 2.png\n', encoding="utf-8")
    assert len(opened(shop / "Fotos", captions=("{file_name}",))) == 2
