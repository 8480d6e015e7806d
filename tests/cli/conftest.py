"""What tests of several commands share: a database of five captioned pictures."""

from pathlib import Path

import pytest

from codebrush.cli.main import run
from codebrush.data.synthetic.shapes import scene


@pytest.fixture(scope="module")
def database(micro_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "pictures").mkdir()
    for index, caption in enumerate(["a red flower", "a blue dog", "two red flowers", "a cat", "a green frog"]):
        scene(0, index, 32).image.save(folder / "pictures" / f"{index}.png")
        (folder / "pictures" / f"{index}.txt").write_text(caption)
    assert run(["index", str(folder / "pictures"), "--db", str(folder / "db"), "--pack", str(micro_pack)]) == 0
    return folder / "db"
