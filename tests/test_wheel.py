"""What is published works without the repository: the wheel holds what it needs, and programs type-check with it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """from codebrush import Codebrush

brush = Codebrush.from_pretrained("emoji")
brush.generate("a red apple", n=2)[0].image.save("apple.png")
reveal_type(brush.pack.image_size)
brush.generate("a red apple", n="two")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing else of this project, built from a copy of the sources."""
    sources, wheels = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheels")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    done = subprocess.run([*build, str(sources)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("codebrush-*.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(installed: Path) -> None:
    assert (installed / "codebrush/py.typed").is_file()
    assert (installed / "codebrush/hub/catalogue.yaml").is_file()
    tops = {path.name for path in installed.iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"codebrush"}
    wanted = {
        path.relative_to(ROOT / "src")
        for path in (ROOT / "src/codebrush").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(installed) for path in (installed / "codebrush").rglob("*") if path.is_file()} == wanted


def test_the_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['codebrush', 'packs', 'show', 'emoji', '--json']\n"
    code += "from codebrush.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(installed), "CODEBRUSH_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(installed / "codebrush/packs/emoji")


def test_a_program_of_others_is_type_checked(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = {"include": ["program.py"], "extraPaths": [str(installed)], "reportMissingModuleSource": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    call = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    found = json.loads(done.stdout)["generalDiagnostics"]
    said = [(entry["severity"], entry["range"]["start"]["line"], entry["message"]) for entry in found]
    assert ("information", 4, 'Type of "brush.pack.image_size" is "int"') in said
    assert [(severity, line) for severity, line, _ in said if severity == "error"] == [("error", 5)]
