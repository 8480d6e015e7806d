"""The errors that a user can cause. Each message is one line that names the thing and the remedy, without secrets."""

import re
from typing import Any

# name:password in an address. A password may hold what ends a host; but digits alone before /, ? or # are a port, and
# one letter before :/ is a drive.
PLAIN = r"[^/\s?#\"']*@"
WITH_COLON = r"(?![a-zA-Z]:[/\\])[^/\s?#@\"':\[]*:(?!\d+[/?#]|\d*[\"'\s,;)])[^\s@]{0,256}@(?:[^/\s?#@\"']*@)*"
USER = re.compile(rf"(?<=://)(?:{PLAIN}|{WITH_COLON})")
HIDDEN = (  # how the names of secrets in addresses end
    "sig|signature|hmac|token|jwt|key|auth|secret|pass|passphrase|passw(?:or)?d|pwd|pw|credentials?"
)
SIGNED = re.compile(rf"([?&;#][\w.-]*(?:{HIDDEN})=)[^&\s'\"]*[^&\s'\":,;.)]", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with *** for the names, passwords, keys and signatures in the addresses that it holds."""
    return SIGNED.sub(r"\1***", USER.sub("***@", text)) if "://" in text else text


class CodebrushError(Exception):
    """An error whose cause the user can see and correct; the command line prints it and exits with status 1."""

    exit_status = 1

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(without_secrets(each) if isinstance(each, str) else each for each in arguments))


class UsageError(CodebrushError):
    """An option or argument is out of its range; the command line exits with status 2."""

    exit_status = 2


class PromptError(CodebrushError):
    """A prompt or another text is empty, too long, cannot be parsed, or has no word that the pack can read."""

    exit_status = 2  # what is to be drawn or sought is an argument


class PackError(CodebrushError):
    """A pack or a model folder is missing, damaged, or made of members that do not fit together."""


class DataError(CodebrushError):
    """A data source is missing, empty, or lacks a column or split that is needed."""


class ImageError(CodebrushError):
    """A picture cannot be decoded, or is not of the kind that is needed."""


class TrainingError(CodebrushError):
    """A training run cannot start or go on."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory. PyTorch says it by a RuntimeError."""
    # Of a CPU, where a GPU's error has its own class; and of Python, if there is no room for a thread's stack.
    lines = ("can't allocate memory", "not enough memory", "can't start new thread")
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    # oneDNN says no more than this where it gets none, and goes on about a descriptor where it cannot do a thing.
    failed = said == "could not create a primitive"
    return failed or type(error).__name__ == "OutOfMemoryError" or any(line in said for line in lines)
