"""Finds the folder of a member's weights in what the user names: a pack, a stage's run, or the model's own folder."""

from pathlib import Path

from codebrush.errors import TrainingError
from codebrush.pack.pack import PACK_FILE, Pack, local_pack
from codebrush.training.run_folder import MODEL_FOLDER


def pack_at(place: str | Path | None) -> Pack | None:
    """The pack in the folder `place`, or the built-in or downloaded one of that name; None if it is not a pack."""
    found = None if place is None else local_pack(str(place))
    return Pack(found) if found is not None and (found / PACK_FILE).is_file() else None


def member_folder(place: Path, member: str) -> Path:
    """The folder of `member` in a pack, in a stage's run folder, or `place` itself.

    Raises:
        TrainingError: if the pack has no such member.
    """
    pack = pack_at(place)
    if pack is not None:
        if not pack.has(member):
            raise TrainingError(f"the pack {pack.folder} has no {member}: name a folder that has one")
        return pack.member(member)
    place = local_pack(str(place)) or place
    return place / MODEL_FOLDER if (place / MODEL_FOLDER).is_dir() else place
