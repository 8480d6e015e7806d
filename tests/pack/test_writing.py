"""What is not written as a pack."""

from pathlib import Path

import pytest

from codebrush.errors import PackError
from codebrush.pack.pack import open_pack
from codebrush.pack.writing import PackMembers, write_pack


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
