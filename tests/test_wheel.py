"""What is published works without the repository: both files hold what is needed, install, and programs type-check."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from codebrush import __version__

pytestmark = pytest.mark.slow  # packs the package, and installs it
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """from codebrush import Codebrush

brush = Codebrush.from_pretrained("emoji")
brush.generate("a red apple", n=2)[0].image.save("apple.png")
reveal_type(brush.pack.image_size)
brush.generate("a red apple", n="two")
"""


def build(sources: Path, out: Path, most: int | None = None) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built of nothing but it; with `most` each file is cut to so many
    bytes, as packing 60 MB of weights twice takes longest."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path in (sources / "src").rglob("*"):
        if most is not None and path.is_file() and path.stat().st_size > most:
            os.truncate(path, most)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (sdist,) = out.glob("codebrush-*.tar.gz")
    make = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    done = subprocess.run([*make, str(sdist)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("codebrush-*.whl")
    return sdist, wheel


def install_alone(wheel: Path, folder: Path) -> Path:
    """An environment in which pip installed the wheel; the packages that it needs are those of this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    there = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.run(there, capture_output=True, text=True, check=True).stdout.strip())
    ours = [each for each in sys.path if each.endswith("site-packages")]
    (site / "needed.pth").write_text("\n".join(ours))  # no .pth file there is read, such as that of this checkout
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("dist"), most=1024**2)


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_alone(built[1], tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def installed(environment: Path) -> Path:
    """The folder with the wheel's content."""
    (package,) = environment.glob("lib/python*/site-packages/codebrush")
    return package.parent


def run(environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, far from the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    kept |= {"CODEBRUSH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    call = [str(environment / "bin/codebrush"), *arguments]
    return subprocess.run(call, cwd=folder, env=kept, capture_output=True, text=True, timeout=300)


def test_both_hold_the_package_with_its_data_and_nothing_else(built: tuple[Path, Path]) -> None:
    wanted = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src/codebrush").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"codebrush/py.typed", "codebrush/hub/catalogue.yaml"} <= wanted
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in wanted} <= names
    others = {name for name in names if not name.startswith(("src/codebrush/", "src/codebrush.egg-info/"))}
    assert others == {"LICENSE", "NOTICE", "README.md", "PKG-INFO", "pyproject.toml", "setup.cfg"}


def test_the_metadata_are_whole(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
        text = wheel.read(name)
        entries = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    found = Metadata.from_email(text, validate=True)  # as PyPI checks it
    assert (found.name, str(found.version)) == ("codebrush", __version__)
    assert found.license_expression == "Apache-2.0"
    assert set(found.license_files or ()) == {"LICENSE", "NOTICE"}
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert str(found.requires_python) == ">=3.11"
    assert "codebrush = codebrush.cli.main:main" in entries
    with tarfile.open(built[0]) as sdist:
        (there,) = [member for member in sdist.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", member.name)]
        assert sdist.extractfile(there).read() == text  # pyright: ignore[reportOptionalMemberAccess]


def test_the_command_runs_from_the_wheel(environment: Path, installed: Path, tmp_path: Path) -> None:
    assert run(environment, tmp_path, "--version").stdout == f"codebrush {__version__}\n"
    shown = run(environment, tmp_path, "packs", "show", "emoji", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["path"] == str(installed / "codebrush/packs/emoji")


@pytest.mark.long  # packs all weights twice; scripts/check-newcomer does the same
def test_the_whole_wheel_draws(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "dist").mkdir()
    _, wheel = build(tmp_path / "sources", tmp_path / "dist")
    environment = install_alone(wheel, tmp_path / "environment")
    drawn = run(environment, tmp_path, "generate", "a red apple", "--n", "1", "--rerank", "1", "--json")
    assert drawn.returncode == 0, drawn.stderr
    (picture,) = json.loads(drawn.stdout)["images"]
    assert (tmp_path / picture["path"]).is_file()


@pytest.mark.long  # the type checker takes a minute
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
