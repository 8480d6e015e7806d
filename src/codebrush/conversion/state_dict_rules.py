"""A model of ours and a published state dict, and the rules that pair their names, in; a filled model, or a state dict
in the published layout, out.

Rules go from our names to the published ones, so that one table serves both directions, and everything that is missing
or left over can be named.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codebrush.errors import PackError

NAMED = 3  # names that an error lists
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    r"""Our names that match `ours` whole are the published `theirs`, in which \1 and so on are filled in.

    Several of theirs stand one after another along the first axis of ours. `transposed` says that theirs is the other
    way round. None of theirs: the published layout has no such tensor and ours keeps the value it starts with.
    """

    ours: str
    theirs: str | tuple[str, ...]
    transposed: bool = False

    def names(self, name: str) -> list[str] | None:
        """The published names of our `name`; None where the rule does not speak of it."""
        match = re.fullmatch(self.ours, name)
        if match is None:
            return None
        return [match.expand(theirs) for theirs in ([self.theirs] if isinstance(self.theirs, str) else self.theirs)]


def prefixed(rules: Iterable[Rule], ours: str, theirs: str) -> list[Rule]:
    """The same rules for a part of the model: `ours` and `theirs` are put in front of the names."""
    moved = []
    for rule in rules:
        names = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
        moved.append(Rule(re.escape(ours) + rule.ours, tuple(theirs + name for name in names), rule.transposed))
    return moved


def fill(model: nn.Module, tensors: Tensors, rules: Sequence[Rule], ignored: str, place: str) -> None:
    """Copy `tensors` into `model`. Names that match `ignored` (a regular expression) may be left over, no others.

    A tensor that is missing, left over or of another shape is a PackError that names it, and `place`.
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
                raise PackError(f"{place}: the tensors {_list(names)} do not go together: is its config right?")
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            value = value.T if transposed else value
            if [side for side in value.shape if side != 1] != [side for side in target.shape if side != 1]:
                wanted, found = _shape(target), _shape(value)
                raise PackError(
                    f"{place}: the tensor {names[0]} is {found}, where {wanted} belongs: is its config right?"
                )
            target.copy_(value.reshape(target.shape))
    left = [name for name in tensors if name not in used and not re.fullmatch(ignored, name)]
    if left:
        raise PackError(f"{place} has the tensor {_list(left)}, which this kind of model has no place for")


def extract(model: nn.Module, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The inverse of `fill`: the model's tensors in the published layout."""
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        names, transposed = _origin(name, rules)
        if names:
            value = (value.T if transposed else value).contiguous()
            parts = value.chunk(len(names)) if len(names) > 1 else (value,)
            found |= dict(zip(names, (part.clone() for part in parts), strict=True))
    return found


def count(tensors: Iterable[str], pattern: str) -> int:
    """How many blocks there are: one more than the largest number in the one group of `pattern`, or 0.

    There are no more than tensors, so that a made-up number asks for no endless network.
    """
    names = list(tensors)
    matches = (re.match(pattern, name) for name in names)
    return min(len(names), max((int(match[1]) + 1 for match in matches if match), default=0))


def _origin(name: str, rules: Sequence[Rule]) -> tuple[list[str], bool]:
    for rule in rules:
        names = rule.names(name)
        if names is not None:
            return names, rule.transposed
    raise PackError(f"the published layout has no place for '{name}'")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
