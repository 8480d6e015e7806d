"""The stages of training, in the order in which a pack is trained.

A new stage is one line here. Its module is imported when the stage is looked up, so that listing the names is quick.
"""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codebrush.training.stage import Stage

MODULES = {
    "clip": "codebrush.training.tasks.clip",
    "vqgan": "codebrush.training.tasks.vqgan",
    "transformer": "codebrush.training.tasks.code_transformer",
    "prior": "codebrush.training.tasks.prior",
    "captioner": "codebrush.training.tasks.captioner",
    "upscaler": "codebrush.training.tasks.upscaler",
    "translator": "codebrush.training.tasks.translator",
}


class _Stages(MutableMapping[str, "Stage"]):
    def __init__(self, modules: dict[str, str]):
        self._stages: dict[str, Stage | str] = {**modules}  # the module of one that was not looked up yet

    def __getitem__(self, name: str) -> "Stage":
        stage = self._stages[name]
        return import_module(stage).STAGE if isinstance(stage, str) else stage

    def __setitem__(self, name: str, stage: "Stage") -> None:
        self._stages[name] = stage

    def __delitem__(self, name: str) -> None:
        del self._stages[name]

    def __contains__(self, name: object) -> bool:
        return name in self._stages

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)


STAGES = _Stages(MODULES)
