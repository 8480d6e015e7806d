"""Imports a package without running a package that it imports and does not use.

LanceDB needs the models of a client for servers, whose `__init__` imports the client too: its 366 methods, each checked
by pydantic, take two thirds of what importing LanceDB takes beside its own modules.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*names: str) -> Iterator[None]:
    """In this block importing one of the modules `names` does not run it yet. It runs once an attribute is asked of it,
    by whoever and whenever, or imported from it by name; its submodules are imported as ever.

    Modules that have been imported before, and those that cannot be found, are as they would be without the block.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the modules `names` where they are, and defers them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferred(spec.loader)
        return spec


class _Deferred(Loader):
    """Loads a module with the loader `own` once an attribute is asked of it that the import system has not set."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own
        module.__getattr__ = _Run(module, self.own)  # pyright: ignore[reportAttributeAccessIssue]


class _Run:
    """The `__getattr__` of a deferred module, which runs it. Other threads wait until it has run."""

    def __init__(self, module: ModuleType, loader: Loader) -> None:
        self.module, self.loader = module, loader
        self.lock, self.has_begun = RLock(), False

    def __call__(self, name: str) -> Any:
        with self.lock:
            if not self.has_begun:
                self.has_begun = True
                self._run()
            if name in vars(self.module):
                return vars(self.module)[name]
        own = vars(self.module).get("__getattr__")
        if own is not None and own is not self:  # the module has one itself
            return own(name)
        raise AttributeError(f"module {self.module.__name__!r} has no attribute {name!r}")

    def _run(self) -> None:
        try:
            self.loader.exec_module(self.module)
        except BaseException:  # as after an import that failed, the next one tries again
            sys.modules.pop(self.module.__name__, None)
            raise
        if vars(self.module).get("__getattr__") is self:
            del self.module.__getattr__
