"""What a pack in training begins from: which members of another pack fit it, and which it takes over as they are."""

from collections.abc import Iterable
from typing import Any

from codebrush.conversion.convert import open_model
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import TrainingError
from codebrush.models.pretrained import PretrainedModel, read_config
from codebrush.pack.members import MEMBERS
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.member_folder import pack_at
from codebrush.training.stage import Stage


class Start:
    """The pack that a training begins from, if any.

    `place` is what the user names, `image_size` the side of the new pack's pictures, and `stages` are all there are, in
    their order. With `learned_words` captions are to be read by a tokenizer learned from them, not by the general one.

    Raises:
        TrainingError: if `place` is not a pack.
    """

    def __init__(self, place: Any, stages: Iterable[Stage], image_size: int, learned_words: bool = False):
        self.pack = pack_at(place)
        if place is not None and self.pack is None:
            raise TrainingError(f"--from {place} is not a pack: name a pack, or none to begin from nothing")
        self.image_size = image_size
        self.unfit: dict[str, str] = {}  # why a member is not begun from, by stage
        self.fits: list[str] = []  # the stages that begin from it
        self.kept: set[str] = set()
        for stage in stages:
            reason = self._misfit(stage, learned_words)
            if reason is None:
                self.fits.append(stage.name)
            else:
                self.unfit[stage.name] = reason

    @property
    def name(self) -> str:
        """What the pack is called."""
        return "" if self.pack is None else self.pack.name

    def _misfit(self, stage: Stage, learned_words: bool) -> str | None:
        """Why the pack's member of a stage is not begun from; None if it is."""
        pack, name = self.pack, stage.name
        if pack is None:
            return ""
        if not pack.has(name):
            return f"{pack.name} has none"
        if learned_words and name == "clip" and pack.tokenizer.vocab_size == Tokenizer.wordpiece().vocab_size:
            return f"{pack.name}'s does not read learned tokens"
        if new := [MEMBERS[each].label for each in stage.bound_to if each in self.unfit]:
            return f"the {' and the '.join(new)} that it reads {'is' if len(new) == 1 else 'are'} new"
        configs = {
            each: read_config(MEMBERS[each].model.config_class, pack.member(each)) for each in MEMBERS if pack.has(each)
        }
        if reason := stage.unfit(configs[name], self.image_size):
            return f"{pack.name}'s {reason}"
        for one, other in stage.member.misfits(configs, self.image_size):
            return f"{pack.name}'s does not fit: the {one}, but the {other}"
        return None

    def origin(self, stage: Stage) -> str:
        """What a stage begins from, in words."""
        if stage.name in self.fits:
            return f"from {self.name}"
        reason = self.unfit[stage.name]
        return f"from nothing ({reason})" if reason else "from nothing"

    def model(self, stage: Stage) -> tuple[PretrainedModel, Tokenizer | None] | None:
        """The network that a stage begins from, with its tokenizer if it has its own; None for a fresh one."""
        if self.pack is None or stage.name not in self.fits:
            return None
        folder = self.pack.member(stage.name)
        network = open_model(stage.name, folder)
        return network, stage.tokenizer_beside(network, folder)

    def keeps(self, stage: Stage) -> bool:
        """Whether a stage that is not trained leaves the pack's member as it is in the new pack, which is then marked:
        that of a pack whose members that it depends on are kept too."""
        fits = stage.name in self.fits and self.kept.issuperset(stage.bound_to)
        if fits:
            self.kept.add(stage.name)
        return fits

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the CLIP that is begun from; None without one."""
        if self.pack is None or "clip" not in self.fits:
            return None
        return tokenizer_of(self.pack.clip, self.pack.member("clip"))

    def facts(self) -> dict[str, Any] | None:
        """What pack.json says about it; None if training began from nothing."""
        if self.pack is None or not self.fits:
            return None
        info = self.pack.info
        return {
            "pack": info["name"],
            "version": info.get("version", ""),
            "licence": info.get("licence", "unspecified"),
            "sha256": self.pack.hash,
        }
