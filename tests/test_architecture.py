"""The source keeps its shape: imports point down, every dependency is declared, files and functions stay short."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# What each group may import beside itself. FOR_ALL is open to every group.
FOR_ALL = {"errors", "files", "optional", "progress", "version"}
_FOUNDATION = {"models", "text"}
_SOURCES = _FOUNDATION | {"data", "conversion", "pack"}
_TASKS = {"generation", "understanding", "search", "evaluation", "training"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "optional": set(),
    "progress": set(),
    "version": set(),
    "models": set(),
    "text": set(),
    "data": _FOUNDATION,
    "conversion": _FOUNDATION | {"pack"},
    "pack": _FOUNDATION,
    **dict.fromkeys(_TASKS, _SOURCES),
    "loaded_pack": _SOURCES | {"generation"},
    "methods": _SOURCES | _TASKS | {"loaded_pack"},
    "pipeline": _SOURCES | _TASKS | {"loaded_pack", "methods"},
    "previews": _SOURCES | _TASKS,
    "hub": {"conversion", "pack"},
    "cli": _SOURCES | _TASKS | {"hub", "methods", "pipeline", "previews"},
    "__main__": {"cli"},
    "__init__": {"pipeline", "conversion"},
}
# The foundation stays readable and portable because it leans on nothing else; the one adapter is named here.
MAY_USE = {
    "errors": set[str](),
    "models": {"torch", "safetensors"},
    "text": {"torch", "safetensors", "tokenizers"},
}
EXCEPTIONS = {
    "codebrush.models.encoders.pretrained_text": {"transformers"},
    "codebrush.text.cleanup": {"ftfy"},
    "codebrush.text.reading": {"emoji"},
}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MODULE_OF = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def module_name(path: Path, root: Path = SRC) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def group_of(name: str) -> str:
    """codebrush.models.clip.CLIP -> models; codebrush itself -> __init__."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def broken_rules(source: str, module: str) -> list[str]:
    """Each import of `source` that its place in the package does not allow, one line a finding."""
    own = group_of(module)
    if own not in MAY_IMPORT:
        return [f"{module}: '{own}' has no place in MAY_IMPORT; give it one, and draw it in the README"]
    found = []
    for line, name in imports(ast.parse(source), module):
        top = name.split(".")[0]
        if top == "codebrush":
            target = group_of(name)
            if target not in MAY_IMPORT[own] | FOR_ALL | {own}:
                found.append(f"{module}:{line}: {own} imports {name}")
            continue
        allowed = MAY_USE.get(own, {top}) | EXCEPTIONS.get(module, set()) | sys.stdlib_module_names
        if top not in allowed:
            found.append(f"{module}:{line}: {own} imports {top}")
    return found


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_imports_point_down():
    files = python_files("src/codebrush")
    assert len(files) > 20
    assert [rule for path in files for rule in broken_rules(path.read_text(), module_name(path))] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "codebrush.training.engine.loop",
            "from codebrush.generation.sampling.decoding import decode",
            "training imports",
        ),
        ("codebrush.training.engine.loop", "from codebrush.pipeline import Codebrush", "training imports"),
        ("codebrush.data.stored_codes", "import codebrush.pack.pack", "data imports codebrush.pack.pack"),
        ("codebrush.models.clip", "def f():\n    from ..text.tokenizer import Tokenizer", "models imports"),
        ("codebrush.models.clip", "import numpy as np", "models imports numpy"),
        ("codebrush.models.clip", "import transformers", "models imports transformers"),
        ("codebrush.text.tokenizer", "import transformers", "text imports transformers"),
        ("codebrush.text.prompts", "from codebrush import models", "text imports codebrush.models"),
        ("codebrush.hub.download", "from codebrush.cli.main import app", "hub imports"),
        ("codebrush.pack.pack", "from codebrush import Codebrush", "pack imports codebrush.Codebrush"),
        ("codebrush.helpers.misc", "import math", "no place"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str, complaint: str):
    (found,) = broken_rules(source, module)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "codebrush.training.engine.loop",
            "from codebrush.data.stored_codes import Codes\nfrom codebrush.version import __version__",
        ),
        ("codebrush.models.clip", "import math\nimport torch\nfrom .transformer import Transformer"),
        (
            "codebrush.cli.generate",
            "from codebrush.errors import UsageError\nfrom ..pipeline import Codebrush",
        ),
    ],
)
def test_an_allowed_import_passes(module: str, source: str):
    assert broken_rules(source, module) == []


def test_every_group_exists():
    """A rule about a group that is gone, or not there yet, would only pretend to keep something."""
    present = {
        path.stem for path in (SRC / "codebrush").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(MAY_IMPORT) == present


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules of `sources` (dotted name -> text) each one imports when it or a function in it runs."""
    graph = {}
    for module, text in sources.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        names = {name for _, name in imports(tree, module)}
        targets = {name if name in sources else name.rpartition(".")[0] for name in names}
        graph[module] = (targets & set(sources)) - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach each other (strongly connected components of more than one)."""

    def reach(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for target in graph[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reached = {module: reach(module) for module in graph}
    found = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(group) for group in found if len(group) > 1)


def test_no_circle_of_imports():
    """Also none that is hidden in functions: two modules that need each other are one module or three."""
    files = {module_name(path).removesuffix(".__init__"): path.read_text() for path in python_files("src/codebrush")}
    assert circles(import_graph(files)) == []


def test_a_circle_is_found():
    sources = {
        "codebrush.a": "def f():\n    from codebrush.b import g",
        "codebrush.b": "from codebrush.c import h",
        "codebrush.c": "import codebrush.a",
        "codebrush.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import codebrush.e",
        "codebrush.e": "import codebrush.d",
    }
    assert circles(import_graph(sources)) == [["codebrush.a", "codebrush.b", "codebrush.c"]]


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [line for name in extras if name != "dev" for line in extras[name]]
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in requirements]
    declared = {MODULE_OF.get(name, name.replace("-", "_")) for name in names}
    used = {
        (name.split(".")[0], module_name(path))
        for path in python_files("src/codebrush")
        for _, name in imports(ast.parse(path.read_text()), module_name(path))
    }
    assert [pair for pair in sorted(used) if pair[0] not in declared | sys.stdlib_module_names | {"codebrush"}] == []


def test_files_and_functions_are_short():
    too_long = []
    for path in python_files("src", "tests", "recipes", "benchmarks"):
        text = path.read_text()
        name = path.relative_to(ROOT)
        lines = text.count("\n")
        if lines > MAX_FILE_LINES:
            too_long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    assert too_long == []


def test_every_file_says_what_it_is_for():
    silent = [path for path in python_files("src/codebrush") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
