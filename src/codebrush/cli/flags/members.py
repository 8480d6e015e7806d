"""The flags of `codebrush train` for trained models that a stage reads: one for each member that some stage reads."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import refuse
from codebrush.training.registry import ENTRIES, readers


def with_member_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with these flags (--clip, --vqgan, ...) in place of its parameter `members`, which then holds the
    folders that were given, by member."""
    read_by = readers()

    @wraps(command)
    def flat(**values: Any) -> None:
        folders = {name: values.pop(name) for name in read_by}
        command(**values, members={name: folder for name, folder in folders.items() if folder is not None})

    shown: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        shown += [_flag(*each) for each in read_by.items()] if parameter.name == "members" else [parameter]
    flat.__signature__ = signature(command).replace(parameters=shown)  # pyright: ignore[reportAttributeAccessIssue]
    return flat


def refuse_unread(stage: str, given: dict[str, str]) -> None:
    """Raises UsageError if the flag of a member that `stage` does not read is among the `given` ones."""
    for member, stages in readers().items():
        if member in given and member not in ENTRIES[stage].reads:
            from codebrush.pack.members import MEMBERS

            refuse(given, (member,), f"is for {_listed(stages)}: {stage} needs no {MEMBERS[member].label}")


def _flag(member: str, stages: Sequence[str]) -> Parameter:
    helped = f"Folder of a trained {member}, or of its pack, for {_listed(stages)}."
    annotation = Annotated[Path | None, typer.Option(help=helped)]
    return Parameter(member, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)


def _listed(stages: Sequence[str]) -> str:
    *others, last = stages
    return f"the stages {', '.join(others)} and {last}" if others else f"the stage {last}"
