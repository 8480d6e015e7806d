"""Pictures are made again from sources given with the manifest, wherever these lie now, and from no others."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codebrush import Codebrush
from codebrush.data.masks import white_where_clear
from codebrush.errors import ImageError
from codebrush.generation.result import Result
from packs import micro_transformer, write_micro_pack

GUIDED = {"steps": 1, "cutouts": 2, "size": "32x32", "batch_size": 1}


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    painter = micro_transformer(image_embedding=24, source_codes=True)
    return Codebrush.from_pretrained(
        write_micro_pack(tmp_path_factory.mktemp("sources") / "micro", transformer=painter), device="cpu"
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph that lies on its side: upright it is 40 x 48."""
    drawn = Image.new("RGB", (48, 40), "orange")
    drawn.paste("navy", (10, 10, 30, 25))
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn.save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


@pytest.fixture
def clear(tmp_path: Path) -> Path:
    """A mask as OpenAI's API has them, for the upright photograph."""
    mask = Image.new("RGBA", (40, 48), (9, 9, 9, 255))
    mask.paste((9, 9, 9, 90), (20, 10, 35, 40))
    mask.save(tmp_path / "clear.png")
    return tmp_path / "clear.png"


def again(brush: Codebrush, result: Result, *sources: Any, **how: Any) -> None:
    """Check that the replay from `sources` is the same picture, and says the same of itself."""
    manifest = json.loads(json.dumps(result.manifest))
    replayed = brush.replay(manifest, sources, **how)
    assert replayed.image.tobytes() == result.image.tobytes()
    assert json.loads(json.dumps(replayed.manifest)) == manifest


def test_an_edit_in_memory_is_made_again_from_files(brush: Codebrush, photo: Path, clear: Path) -> None:
    mask = white_where_clear(Image.open(clear))
    (result,) = brush.edit(Image.open(photo), "a blue square", n=1, rerank=1, mask=mask)
    assert result.image.size == (40, 48)
    again(brush, result, clear, photo)
    again(brush, result, photo, clear, named_files=False)
    again(brush, result, Image.open(photo), mask)
    with pytest.raises(ImageError, match="none of the sources is the mask that it was made from"):
        brush.replay(result.manifest, photo)
    with pytest.raises(ImageError, match="none of the sources is the picture that it was made from"):
        brush.replay(result.manifest, [clear, Image.new("RGB", (40, 48), "orange")])


def test_a_source_may_have_moved(brush: Codebrush, photo: Path) -> None:
    (result,) = brush.vary(photo, n=1, rerank=1)
    moved = photo.rename(photo.with_name("moved.jpg"))
    with pytest.raises(ImageError, match=r"photo\.jpg: cannot be read"):
        brush.replay(result.manifest)
    again(brush, result, moved)


def test_the_files_of_a_stranger_are_not_opened(brush: Codebrush, photo: Path) -> None:
    (result,) = brush.vary(photo, n=1, rerank=1)
    again(brush, result)
    with pytest.raises(ImageError, match=r"the picture, photo\.jpg, that it was made from is not part of the manifest"):
        brush.replay(result.manifest, named_files=False)
    again(brush, result, photo, named_files=False)
    manifest = brush.generate("a red circle", n=1, rerank=1)[0].manifest
    looked_up = {"prior": "retrieval", "neighbours": 1, "bank": "/photos.db"}
    with pytest.raises(ImageError, match=r"made with the database /photos\.db, which is not part of the manifest"):
        brush.replay({**manifest, "method": "retrieve", "retrieval": looked_up}, named_files=False)


def test_pictures_of_a_guided_run_travel_with_it(
    brush: Codebrush, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours, mask = tmp_path / "colours.png", tmp_path / "mask.png"
    Image.new("RGB", (8, 8), "red").save(colours)
    Image.new("L", (32, 32), 255).save(mask)
    named = {"init": str(photo), "image_prompt": f"{photo}:0.5", "palette": str(colours), "mask": str(mask)}
    with pytest.warns(UserWarning, match="differ in shape"):
        run = brush.guide("a red circle", **GUIDED, **named)
    list(run)
    (result,) = run.results
    with pytest.raises(ImageError, match=r"the file, \w+\.\w+, that it was made from is not part of the manifest"):
        brush.replay(result.manifest, named_files=False)
    (tmp_path / "elsewhere").mkdir()
    moved = [path.rename(tmp_path / "elsewhere" / f"0{number}") for number, path in enumerate((photo, colours, mask))]
    again(brush, result, *moved, named_files=False)
    with pytest.raises(ImageError, match=r"none of the sources is the file, mask\.png, that it was made from"):
        brush.replay(result.manifest, moved[:2], named_files=False)
    monkeypatch.chdir(moved[1].parent)
    for changes in ({"palette": "01"}, {"init": "00"}, {"mask": "02"}, {"image_prompt": ["00"]}):
        options = {"steps": 1, "cutouts": 2, "size": "32x32", **changes}
        with pytest.raises(ImageError, match="is not part of the manifest"):
            brush.replay({**result.manifest, "options": options, "files": {}}, named_files=False)
    other = {**result.manifest, "options": {"other_clip": ["emoji"]}, "files": {}}
    with pytest.raises(ImageError, match="made with another CLIP, emoji"):
        brush.replay(other, named_files=False)
