"""The source keeps its shape: imports point down, every dependency is declared, files and functions stay short."""

import ast
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"

# What each group may import beside itself. FOR_ALL is open to every group.
FOR_ALL = {"errors", "files", "openmp", "optional", "process_memory", "progress", "version", "warned"}
_FOUNDATION = {"models", "text"}
_SOURCES = _FOUNDATION | {"data", "conversion", "pack"}
_TASKS = {"generation", "understanding", "search", "evaluation", "training"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "openmp": set(),
    "optional": set(),
    "process_memory": {"errors"},
    "progress": set(),
    "version": set(),
    "warned": set(),
    "models": set(),
    "text": set(),
    "data": _FOUNDATION,
    "conversion": _FOUNDATION | {"pack"},
    "pack": _FOUNDATION,
    **dict.fromkeys(_TASKS, _SOURCES),
    "loaded_pack": _SOURCES | {"generation"},
    "methods": _SOURCES | _TASKS | {"loaded_pack"},
    "picture_tasks": _SOURCES | _TASKS | {"loaded_pack"},
    "pipeline": _SOURCES | _TASKS | {"methods", "picture_tasks"},
    "previews": _SOURCES | _TASKS,
    "doctor": _SOURCES | {"pipeline"},
    "hub": {"conversion", "pack"},
    "serving": _SOURCES | _TASKS | {"pipeline"},
    "distributed": _SOURCES | _TASKS | {"pipeline", "serving"},
    "cli": _SOURCES | _TASKS | {"distributed", "doctor", "hub", "methods", "pipeline", "previews", "serving"},
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
MODULE_OF = {"faiss-cpu": "faiss", "pillow": "PIL", "pylance": "lance", "pyyaml": "yaml", "scikit-learn": "sklearn"}
BY_STRING = re.compile(r"codebrush(\.\w+)+")  # in a table for import_module: of stages, commands, public names


def module_name(path: Path, root: Path = SRC) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


@dataclass
class Source:
    """What the rules look at in a file."""

    lines: int
    docstring: str | None
    imports: list[tuple[int, str]]  # line and absolute dotted name, wherever in it the import or the string stands
    run: set[str]  # names that are imported when the module or a function in it runs: none under `if TYPE_CHECKING`
    functions: list[tuple[int, str, int]]  # line, name, length in lines


def parse(text: str, module: str) -> Source:
    tree = ast.parse(text)
    source = Source(text.count("\n"), ast.get_docstring(tree), [], set(), [])
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, runs = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            source.functions.append((node.lineno, node.name, (node.end_lineno or node.lineno) - node.lineno + 1))
        for line, name in imported(node, module):
            source.imports.append((line, name))
            if runs:
                source.run.add(name)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += [(child, False) for child in node.body] + [(child, runs) for child in node.orelse]
        else:
            waiting += [(child, runs) for child in ast.iter_child_nodes(node)]
    return source


def imported(node: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a node of a module imports."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and BY_STRING.fullmatch(node.value):
            yield node.lineno, node.value
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(module.split(".")[: -node.level]) if node.level else ""
        origin = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            yield node.lineno, f"{origin}.{alias.name}"


@cache
def read(path: Path) -> Source:
    return parse(path.read_text(), module_name(path, SRC if path.is_relative_to(SRC) else ROOT))


def group_of(name: str) -> str:
    """codebrush.models.clip.CLIP -> models; codebrush itself -> __init__."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def broken_rules(source: Source, module: str) -> list[str]:
    """Each import of a module that its place in the package does not allow, one line a finding."""
    own = group_of(module)
    if own not in MAY_IMPORT:
        return [f"{module}: '{own}' has no place in MAY_IMPORT; give it one, and draw it in the README"]
    found = []
    for line, name in sorted(source.imports):
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
    assert [rule for path in files for rule in broken_rules(read(path), module_name(path))] == []


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
        ("codebrush.training.registry", "MODULES = {'clip': 'codebrush.cli.train'}", "training imports"),
        ("codebrush.helpers.misc", "import math", "no place"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str, complaint: str):
    (found,) = broken_rules(parse(source, module), module)
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
    assert broken_rules(parse(source, module), module) == []


def test_every_group_exists():
    """A rule about a group that is gone, or not there yet, would only pretend to keep something."""
    present = {
        path.stem for path in (SRC / "codebrush").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(MAY_IMPORT) == present


def import_graph(names: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Which of the modules each one imports, by the names that it imports (module -> names)."""
    graph = {}
    for module, own in names.items():
        targets = {name if name in names else name.rpartition(".")[0] for name in own}
        graph[module] = (targets & set(names)) - {module}
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
    files = {module_name(path).removesuffix(".__init__"): read(path).run for path in python_files("src/codebrush")}
    graph = import_graph(files)
    assert circles(graph) == []
    assert "codebrush.training.tasks.clip" in graph["codebrush.training.registry"]
    assert "codebrush.cli.generate" in graph["codebrush.cli.main"]


def rooms_of(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Which rooms, the folders within a group, know each other, by what their modules import."""

    def room(module: str) -> str | None:
        parts = module.split(".")
        return ".".join(parts[:3]) if len(parts) > 3 else None

    found: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if (own := room(module)) is not None:
            known = (room(target) for target in targets)
            found.setdefault(own, set()).update(name for name in known if name not in (None, own))
    return found


def test_no_circle_of_rooms():
    """Of two folders of a group only one knows the other; what both need stands beside them."""
    files = {module_name(path).removesuffix(".__init__"): read(path).run for path in python_files("src/codebrush")}
    rooms = rooms_of(import_graph(files))
    assert circles(rooms) == []
    assert "codebrush.serving.workers" in rooms["codebrush.serving.jobs"]


def test_a_circle_of_rooms_is_found():
    graph = {"codebrush.a.b.c": {"codebrush.a.d.e"}, "codebrush.a.d.e": {"codebrush.a.f"}, "codebrush.a.f": set()}
    assert circles(rooms_of(graph)) == []
    graph["codebrush.a.d.g"] = {"codebrush.a.b.h"}
    assert circles(rooms_of(graph | {"codebrush.a.b.h": set()})) == [["codebrush.a.b", "codebrush.a.d"]]


def test_a_circle_is_found():
    sources = {
        "codebrush.a": "def f():\n    from codebrush.b import g",
        "codebrush.b": "from codebrush.c import h",
        "codebrush.c": "import codebrush.a",
        "codebrush.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import codebrush.e",
        "codebrush.e": "import codebrush.d",
        "codebrush.f": "MODULES = {'g': 'codebrush.g'}",
        "codebrush.g": "from codebrush.f import MODULES",
    }
    names = {module: parse(text, module).run for module, text in sources.items()}
    assert circles(import_graph(names)) == [
        ["codebrush.a", "codebrush.b", "codebrush.c"],
        ["codebrush.f", "codebrush.g"],
    ]


def test_every_third_party_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [line for name in extras if name != "dev" for line in extras[name]]
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in requirements]
    declared = {MODULE_OF.get(name, name.replace("-", "_")) for name in names}
    used = {
        (name.split(".")[0], module_name(path))
        for path in python_files("src/codebrush")
        for _, name in read(path).imports
    }
    assert [pair for pair in sorted(used) if pair[0] not in declared | sys.stdlib_module_names | {"codebrush"}] == []


def test_files_and_functions_are_short():
    too_long = []
    for path in python_files("src", "tests", "recipes", "benchmarks"):
        name, source = path.relative_to(ROOT), read(path)
        if source.lines > MAX_FILE_LINES:
            too_long.append(f"{name}: {source.lines} lines")
        for line, function, length in source.functions:
            if length > MAX_FUNCTION_LINES:
                too_long.append(f"{name}:{line}: {function} has {length} lines")
    assert too_long == []


def test_every_file_says_what_it_is_for():
    silent = [path for path in python_files("src/codebrush") if not read(path).docstring]
    assert silent == []
