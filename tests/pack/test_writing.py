"""What is not written as a pack, and what is added to one that is written."""

import json
import shutil
from pathlib import Path

import pytest

from codebrush.errors import PackError
from codebrush.pack.pack import open_pack
from codebrush.pack.writing import PackMembers, add_entries, write_pack


@pytest.mark.parametrize(
    ("painter", "said"), [("flow", "needs a flow transformer in the pack"), ("oil", "needs one of sample, flow")]
)
def test_a_painter_that_the_pack_has_not_is_refused(micro_pack: Path, tmp_path: Path, painter: str, said: str) -> None:
    pack = open_pack(micro_pack)
    members = PackMembers({"clip": pack.clip, "vqgan": pack.vqgan, "transformer": pack.transformer})
    about = {"name": "a", "version": "1", "licence": "CC0", "provenance": {}}
    with pytest.raises(PackError, match=said):
        write_pack(tmp_path / "made", members, painter=painter, **about)
    assert not (tmp_path / "made").exists()


def test_entries_are_added_to_a_pack_and_the_others_stay(micro_pack: Path, tmp_path: Path) -> None:
    pack = shutil.copytree(micro_pack, tmp_path / "pack")
    before = json.loads((pack / "pack.json").read_text())
    add_entries(pack, {"scores": {"likely": 0.3}, "licence": "MIT"})
    assert json.loads((pack / "pack.json").read_text()) == {**before, "scores": {"likely": 0.3}, "licence": "MIT"}
    assert open_pack(pack).name == before["name"]
    with pytest.raises(PackError, match=r"is not a pack: it has no pack\.json"):
        add_entries(tmp_path, {"scores": {}})
    assert not (tmp_path / "pack.json").exists()
