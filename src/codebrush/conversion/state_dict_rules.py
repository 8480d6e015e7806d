"""Rules that pair the names of our tensors with published ones, to fill a model from a published state dict or the
other way round.

Rules go from our names to the published ones, so that one table serves both directions, and every tensor that is
missing or left over can be named.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codebrush.errors import PackError

NAMED = 3  # tensors that an error line lists by name
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    r"""Our tensors whose whole name matches the regular expression `ours` are called `theirs` in the published layout,
    with \1 and so on filled in from the match.

    Several of theirs are concatenated along the first axis of ours. `transposed`: theirs is ours transposed. An empty
    `theirs`: the published layout has no such tensor, and ours keeps its initial value.
    """

    ours: str
    theirs: str | tuple[str, ...]
    transposed: bool = False

    def names(self, name: str) -> list[str] | None:
        """The published names of our tensor `name`; None if the rule is not about it."""
        match = re.fullmatch(self.ours, name)
        if match is None:
            return None
        return [match.expand(theirs) for theirs in ([self.theirs] if isinstance(self.theirs, str) else self.theirs)]


def prefixed(rules: Iterable[Rule], ours: str, theirs: str) -> list[Rule]:
    """The same rules for a part of a model: `ours` and `theirs` are prefixes for the names on either side."""
    moved = []
    for rule in rules:
        names = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
        moved.append(Rule(re.escape(ours) + rule.ours, tuple(theirs + name for name in names), rule.transposed))
    return moved


def fill(model: nn.Module, tensors: Tensors, rules: Sequence[Rule], ignored: str, place: str) -> None:
    """Copy published `tensors` into `model`, in the dtypes of the model.

    Only tensors whose names match the regular expression `ignored` may be left over. `place` names the checkpoint in
    error lines.

    Raises:
        PackError: if a tensor is missing, left over or of another shape; it is named.
    """
    used: set[str] = set()
    with torch.no_grad():
        for name, target in model.state_dict().items():
            names, transposed = _origin(name, rules)
            if not names:
                continue
            missing = [one for one in names if one not in tensors]
            if missing:
                raise PackError(f"{place} lacks the tensor {_list(missing)}")
            used.update(names)
            parts = [tensors[one].to(target.dtype) for one in names]
            if len({part.shape[1:] if part.ndim else None for part in parts} | {target.shape[1:]}) > 1 < len(parts):
                raise PackError(f"{place}: the shapes of {_list(names)} do not match: is its config right?")
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            value = value.T if transposed else value
            if [side for side in value.shape if side != 1] != [side for side in target.shape if side != 1]:
                wanted, found = _shape(target), _shape(value)
                raise PackError(
                    f"{place}: the tensor {names[0]} is {found}, but should be {wanted}: is its config right?"
                )
            target.copy_(value.reshape(target.shape))
    left = [name for name in tensors if name not in used and not re.fullmatch(ignored, name)]
    if left:
        raise PackError(f"{place} has the tensor {_list(left)}, which this kind of model does not have")


def extract(model: nn.Module, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The inverse of `fill`: copies of the model's tensors under their published names.

    Raises:
        PackError: if the published layout has no name for one of them.
    """
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        names, transposed = _origin(name, rules)
        if names:
            value = (value.T if transposed else value).contiguous()
            parts = value.chunk(len(names)) if len(names) > 1 else (value,)
            found |= dict(zip(names, (part.clone() for part in parts), strict=True))
    return found


def count(tensors: Iterable[str], pattern: str) -> int:
    """The number of blocks: one more than the largest number in the one group of `pattern`, or 0.

    At most the number of tensors, so that a made-up block number cannot ask for an endless network.
    """
    names = list(tensors)
    matches = (re.match(pattern, name) for name in names)
    return min(len(names), max((int(match[1]) + 1 for match in matches if match), default=0))


def check_config(settings: Mapping[str, Any], found: Mapping[str, Any], place: str) -> None:
    """Raise a PackError if a config contradicts what was `found` in the tensors of `place`."""
    for name, value in found.items():
        if settings.get(name) not in (None, value):
            raise PackError(f"{place}: its config says {name} {settings[name]}, but its tensors say {value}")


def _origin(name: str, rules: Sequence[Rule]) -> tuple[list[str], bool]:
    for rule in rules:
        names = rule.names(name)
        if names is not None:
            return names, rule.transposed
    raise PackError(f"the published layout has no tensor for '{name}'")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
