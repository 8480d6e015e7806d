"""What a pack in training begins from: which members of another pack fit it, and which it takes over as they are."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from codebrush.conversion.convert import open_model
from codebrush.conversion.tokenizers import tokenizer_of
from codebrush.errors import TrainingError
from codebrush.models.pretrained import PretrainedModel, read_config
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.pack.members import MEMBERS, PAINTERS, usual_painter_of
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned
from codebrush.training.member_folder import pack_at
from codebrush.training.packs.reconstructions import reconstructed_psnr
from codebrush.training.stage import Stage

LOOKED_AT = 32  # pictures by which VQGANs are compared; of 2,000 icons 16 said 22.4 dB, 32 23.7, 48 24.6
BETTER = 0.5  # dB by which a VQGAN must be better than the pack's own, which the pack's painter reads


class Start:
    """The pack that a training begins from, if any.

    `place` is what the user names, `image_size` the side of the new pack's pictures, and `stages` are all there are, in
    their order. With `learned_words` captions are to be read by a tokenizer learned from them, not by the general one.

    A pack may have further VQGANs to begin from: pack.json has "starts": {"vqgan": {what it knows: {"folder": ...,
    "licence": ...}}}. `choose_vqgan` takes one of them where it knows the pictures better.

    Raises:
        TrainingError: if `place` is not a pack.
    """

    def __init__(self, place: Any, stages: Iterable[Stage], image_size: int, learned_words: bool = False):
        self.pack = pack_at(place)
        if place is not None and self.pack is None:
            raise TrainingError(f"--from {place} is not a pack: name a pack, or none to begin from nothing")
        self.image_size = image_size
        self.stages = list(stages)
        self.kept: set[str] = set()
        self.chosen: str | None = None  # the VQGAN of the pack's `starts` that is begun from instead of its member
        self.psnr = 0.0  # dB, of the pictures through the VQGAN that is begun from, once it is chosen
        self.unfit: dict[str, str] = {}  # why a member is not begun from, by stage
        self.fits: list[str] = []  # the stages that begin from it
        for stage in self.stages:
            reason = self._misfit(stage, learned_words)
            if reason is None:
                self.fits.append(stage.name)
            else:
                self.unfit[stage.name] = reason

    def choose_vqgan(self, data: Captioned) -> None:
        """Choose, of the pack's own VQGAN and the further ones that fit, the one that reconstructs the pictures best.

        What reads the pack's own codes is then not kept, but may begin from the
        pack's, since the further ones were trained on from the pack's own."""
        if self.pack is None or "vqgan" not in self.fits:
            return
        stage = next(stage for stage in self.stages if stage.name == "vqgan")
        self.psnr = reconstructed_psnr(self.pack.vqgan, data, LOOKED_AT)
        least = self.psnr + BETTER
        for name, facts in self._further().items():
            folder = self.pack.folder / facts["folder"]
            if stage.unfit(read_config(VQGANConfig, folder), self.image_size):
                continue
            psnr = reconstructed_psnr(VQGAN.from_pretrained(folder), data, LOOKED_AT)
            if psnr > max(least, self.psnr):
                self.chosen, self.psnr = name, psnr

    def reconstructs(self, stage: Stage) -> float:
        """The PSNR in dB of the pictures through what a stage begins from; 0 if that is no VQGAN or not known."""
        return self.psnr if stage.name == "vqgan" else 0.0

    @property
    def name(self) -> str:
        """What the pack is called."""
        return "" if self.pack is None else self.pack.name

    def _further(self) -> dict[str, dict[str, str]]:
        """Folder and licence of the pack's further VQGANs, by what they know."""
        return {} if self.pack is None else self.pack.info.get("starts", {}).get("vqgan", {})

    def _folder(self, name: str) -> Path:
        """The folder of the network that the stage `name` begins from."""
        assert self.pack is not None
        if self.chosen is not None and self._is_other(name):
            return self.pack.folder / self._further()[self.chosen]["folder"]
        return self.pack.member(name)

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

    def _is_other(self, name: str) -> bool:
        """Whether the stage `name` begins from another network than the pack's member."""
        return name == "vqgan" and self.chosen is not None

    def whose(self, stage: Stage) -> str:
        """The network that a stage begins from, in words: "emoji's"."""
        return f"{self.name}'s" + (f" for {self.chosen}" if self._is_other(stage.name) else "")

    def origin(self, stage: Stage) -> str:
        """What a stage begins from, in words."""
        if self._is_other(stage.name):
            return f"from {self.whose(stage)}"
        if stage.name in self.fits:
            return f"from {self.name}"
        reason = self.unfit[stage.name]
        return f"from nothing ({reason})" if reason else "from nothing"

    def model(self, stage: Stage) -> tuple[PretrainedModel, Tokenizer | None] | None:
        """The network that a stage begins from, with its tokenizer if it has its own; None for a fresh one."""
        if self.pack is None or stage.name not in self.fits:
            return None
        folder = self._folder(stage.name)
        network = open_model(stage.name, folder)
        return network, stage.tokenizer_beside(network, folder)

    def keeps(self, stage: Stage) -> bool:
        """Whether a stage that is not trained leaves the pack's member as it is in the new pack, which is then marked:
        that of a pack whose members that it depends on are kept too."""
        beside_its_own = not any(self._is_other(each) for each in stage.bound_to)
        fits = stage.name in self.fits and beside_its_own and self.kept.issuperset(stage.bound_to)
        if fits:
            self.kept.add(stage.name)
        return fits

    def is_second(self, stage: Stage, planned: Collection[str] = ()) -> bool:
        """Whether a stage is trained only where it is `planned`, or a budget enough for it beside all others: any
        painter but those that are planned, else but the one that draws with this pack, or the code transformer if none
        fits. A pack needs one painter, and half of the time for each makes two poor ones."""
        named = None if self.pack is None else self.pack.info.get("painter")
        first = {name for name in PAINTERS.values() if name in planned}
        first = first or {PAINTERS[usual_painter_of(self.fits, named) or "sample"]}
        return stage.name in PAINTERS.values() and stage.name not in first

    def paints_with_its_clip(self, painter: Stage) -> bool:
        """Whether a painter of the pack is begun from and reads a CLIP that is there, too. It knows that one alone:
        beside a trained CLIP it is of no use until it is trained as well."""
        return painter.name in PAINTERS.values() and {"clip", painter.name}.issubset(self.fits)

    def lost(self, stages: Collection[str], left_out: Collection[str]) -> list[str]:
        """What the new pack will not have of this one, as labels: members that none of the `stages` trains or takes
        over, and that do not fit what is trained. Those that are `left_out` are not trained."""
        if self.pack is None:
            return []
        trained = set(stages).difference(left_out)
        by_name = {stage.name: stage for stage in self.stages}
        taken = {name for name in self.fits if trained.isdisjoint(by_name[name].bound_to)}
        made = {*stages, *taken, "bank"}  # which comes with a painter
        return [member.label for name, member in MEMBERS.items() if self.pack.has(name) and name not in made]

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
        facts = {
            "pack": info["name"],
            "version": info.get("version", ""),
            "licence": info.get("licence", "unspecified"),
            "sha256": self.pack.hash,
        }
        if self.chosen is not None:
            licence = self._further()[self.chosen]["licence"]
            facts |= {"vqgan": self.chosen, "licence": f"{facts['licence']}; its VQGAN for {self.chosen}: {licence}"}
        return facts
