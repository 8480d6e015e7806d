"""The stages of training, in the order in which a pack is trained.

A new stage is one line here. Its module is imported when the stage is looked up, so that the command line knows the
names, and the flags for the models that a stage reads, before anything heavy is imported.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codebrush.training.stage import Stage


@dataclass(frozen=True)
class Entry:
    """One stage: the module that exports it as STAGE, and the earlier members that its training may need.

    A member that is read brings its network and, if it has one beside it, its tokenizer: with a CLIP come its features,
    its embeddings and the tokens of captions.
    """

    module: str
    reads: tuple[str, ...] = ()


ENTRIES = {
    "clip": Entry("codebrush.training.tasks.clip"),
    "vqgan": Entry("codebrush.training.tasks.vqgan", ("clip",)),
    "transformer": Entry("codebrush.training.tasks.code_transformer", ("clip", "vqgan")),
    "flow": Entry("codebrush.training.tasks.flow", ("clip", "vqgan")),
    "prior": Entry("codebrush.training.tasks.prior", ("clip",)),
    "captioner": Entry("codebrush.training.tasks.captioner", ("clip",)),
    "upscaler": Entry("codebrush.training.tasks.upscaler", ("clip", "vqgan")),
    "translator": Entry("codebrush.training.tasks.translator", ("clip",)),
}


class _Stages(Mapping[str, "Stage"]):
    def __getitem__(self, name: str) -> "Stage":
        return import_module(ENTRIES[name].module).STAGE

    def __contains__(self, name: object) -> bool:
        return name in ENTRIES

    def __iter__(self) -> Iterator[str]:
        return iter(ENTRIES)

    def __len__(self) -> int:
        return len(ENTRIES)


STAGES = _Stages()


def readers() -> dict[str, list[str]]:
    """The members that some stage reads when it is trained, each with the stages that read it."""
    found: dict[str, list[str]] = {}
    for stage, entry in ENTRIES.items():
        for member in entry.reads:
            found.setdefault(member, []).append(stage)
    return found
