"""The names and flags other people's code and scripts lean on change on purpose only.

After a deliberate change run `CODEBRUSH_FREEZE_CLI=1 pytest tests/test_public_surface.py` and commit
tests/cli_surface.json with it.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import codebrush
from packs import micro_captioner, micro_tokenizer, write_micro_pack

CLI_SURFACE = Path(__file__).with_name("cli_surface.json")
# What takes most of a second or more to import: none of it may stand between a user and --help.
HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "datasets",
    "pyarrow",
    "tokenizers",
    "lightning_fabric",
    "transformers",
)


def surface(command: Any, name: str = "codebrush") -> dict[str, list[str]]:
    """Each command's full name -> its arguments and flags, sorted; hidden ones promise nothing."""
    flags = []
    for param in command.params:
        if getattr(param, "hidden", False):
            continue
        if param.param_type_name == "argument":
            flags.append(f"{param.name}{'...' if param.nargs == -1 else ''}")
        else:
            flags.extend([*param.opts, *param.secondary_opts])
    found = {name: sorted(flags)}
    for child_name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            found |= surface(child, f"{name} {child_name}")
    return dict(sorted(found.items()))


def test_public_names():
    loaders = ["load_clip", "load_code_transformer", "load_vqgan"]
    assert sorted(codebrush.__all__) == ["Codebrush", "CodebrushError", "__version__", *loaders]
    for name in set(codebrush.__all__) - {"__version__"}:
        assert getattr(codebrush, name).__name__ == name
        assert getattr(codebrush, name).__module__.startswith("codebrush.")
    assert set(codebrush.__all__) <= set(dir(codebrush))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Pencil'"):
        _ = codebrush.Pencil


def test_version_is_the_installed_one():
    """Of a checkout pip knows the version that it had when it was installed, which `make` does again for a new one;
    tests/test_wheel.py holds it for what is published."""
    origin = json.loads(distribution("codebrush").read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable") and version("codebrush") != codebrush.__version__:
        pytest.skip("the version has changed since the checkout was installed")
    assert codebrush.__version__ == version("codebrush")


def test_cli_surface_is_frozen():
    from codebrush.cli.main import app

    now = surface(typer.main.get_command(app))
    if os.environ.get("CODEBRUSH_FREEZE_CLI"):
        CLI_SURFACE.write_text(json.dumps(now, indent=2) + "\n")
    assert now == json.loads(CLI_SURFACE.read_text())


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]], ids=" ".join)
def test_the_command_line_answers_before_anything_heavy_is_imported(arguments: list[str]):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['codebrush', *{arguments}]\n"
        "from codebrush.cli.main import main\n"
        "main()"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_drawing_and_reading_pictures_import_no_compiler(tmp_path: Path):
    """torch._dynamo alone takes as long as all the rest; it is imported where a network is made on the meta device."""
    pack = write_micro_pack(tmp_path / "pack", captioner=micro_captioner(), words=micro_tokenizer())
    picture = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    code = (
        "import sys\n"
        "from codebrush.cli.main import run\n"
        f"pack, picture, out = {['--pack', str(pack)]}, {str(picture)!r}, {str(tmp_path / 'drawn')!r}\n"
        "assert run(['generate', 'red', '--n', '1', '--out', out, *pack]) == 0\n"
        "assert run(['classify', picture, '--labels', 'red,blue', *pack]) == 0\n"
        "assert run(['caption', picture, *pack]) == 0\n"
        "print('imported', [name for name in ('torch._dynamo', 'pandas', 'datasets') if name in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"


def test_the_package_is_imported_before_anything_heavy():
    code = f"import codebrush, sys; codebrush.CodebrushError; print(sorted({set(HEAVY)} & set(sys.modules)))"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_python_dash_m_is_the_command():
    done = run_python("-m", "codebrush", "--help")
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
