"""How a step of guidance fits into memory: the settings, as they are stored with a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codebrush.generation.guided.memory.decoder_tiling import DecodePlan


@dataclass(frozen=True)
class MemoryPlan:
    """How many views CLIP reads at once, and how the decoder runs.

    None of it changes a gradient by more than rounding, except tiles, which blend at their borders and treat the
    statistics of the norms as constants.
    """

    micro_batch: int
    decode: DecodePlan = DecodePlan()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "MemoryPlan":
        """The plan of which `dataclasses.asdict` made `values`. Raises KeyError, TypeError or ValueError if they are
        damaged."""
        plan = cls(values["micro_batch"], DecodePlan(**values["decode"]))
        numbers = (plan.micro_batch, plan.decode.tile, plan.decode.overlap)
        switches = (plan.decode.checkpoint, plan.decode.seamless)
        if {type(each) for each in numbers} != {int} or {type(each) for each in switches} != {bool}:
            raise TypeError("a plan of the wrong kind")
        if plan.micro_batch < 1 or plan.decode.tile < 0 or plan.decode.overlap < 0:
            raise ValueError("a plan of no pictures or tiles")
        return plan
