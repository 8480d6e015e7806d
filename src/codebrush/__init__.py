"""Make pictures from words, and train the models that do it, on your own captioned pictures.

The public names, nothing else. Each is imported when it is first used, so that ``import codebrush``
(and with it ``codebrush --help``) does not wait for torch. What must come before torch is done here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from codebrush.openmp import let_waiting_threads_sleep
from codebrush.version import __version__

if TYPE_CHECKING:
    from codebrush.conversion.load import load_clip as load_clip
    from codebrush.conversion.load import load_code_transformer as load_code_transformer
    from codebrush.conversion.load import load_vqgan as load_vqgan
    from codebrush.errors import CodebrushError as CodebrushError
    from codebrush.pipeline import Codebrush as Codebrush

let_waiting_threads_sleep()

_HOME = {
    "Codebrush": "codebrush.pipeline",
    "CodebrushError": "codebrush.errors",
    "load_clip": "codebrush.conversion.load",
    "load_code_transformer": "codebrush.conversion.load",
    "load_vqgan": "codebrush.conversion.load",
}

__all__ = ["Codebrush", "CodebrushError", "__version__", "load_clip", "load_code_transformer", "load_vqgan"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'codebrush' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
