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
        """The plan of which `dataclasses.asdict` made `values`. Raises KeyError or TypeError if they are damaged."""
        return cls(values["micro_batch"], DecodePlan(**values["decode"]))
