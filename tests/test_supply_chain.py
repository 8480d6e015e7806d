"""What is installed is what was published, and nothing in the package runs what others wrote."""

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/check_hashes.py"
CPU_BUILD = ("torch", "+cpu")


def script() -> Any:
    spec = importlib.util.spec_from_file_location("check_hashes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_constraint_has_its_hashes_and_nothing_else_has() -> None:
    check = script()
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    known = check.read_list(check.LIST)
    assert len(pinned) > 150
    others = {(name, version) for name, version in known if (name, version[-4:]) != CPU_BUILD}
    assert others == {(check.canonical(name), version) for name, version in pinned}


def test_the_workflow_checks_what_it_installs() -> None:
    rules = (ROOT / "Makefile").read_text()
    installs = re.findall(r"-m pip install.*", rules.replace("\\\n", " "))
    assert len(installs) == 2  # the third party's auditor stands alone
    assert rules.count("$(INSTALL)") == rules.count("$(CHECK)") == 3
    assert "--report $(VENV)/report.json" in installs[0]
    assert "$(if $(CI),--strict) && rm $(UNCHECKED)\n" in rules
    assert rules.count("touch $(UNCHECKED) && rm -f $(DEMO) $(STUDIO) $(DEV)") == 1  # and so no rule counts as done
    assert rules.count("if [ ! -e $(UNCHECKED) ] &&") == 1  # else the environment is made anew
    assert "export CI=true" in (ROOT / ".ci/run").read_text()


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the script on a report that names files with these hashes."""

    def run(*entries: tuple[str, str, dict[str, Any]], strict: bool = True) -> subprocess.CompletedProcess[str]:
        install = [
            {"metadata": {"name": name, "version": version}, "download_info": {"url": "https://host/a.whl", **info}}
            for name, version, info in entries
        ]
        (tmp_path / "report.json").write_text(json.dumps({"install": install}))
        call = [sys.executable, "-I", "-S", SCRIPT, tmp_path / "report.json", *(["--strict"] if strict else [])]
        return subprocess.run([str(each) for each in call], capture_output=True, text=True, timeout=60)

    return run


def published(name: str) -> tuple[str, str]:
    """The version of a package in hashes.txt, and one of its hashes."""
    check = script()
    return next((key[1], min(hashes)) for key, hashes in check.read_list(check.LIST).items() if key[0] == name)


def stated(digest: str) -> dict[str, Any]:
    return {"archive_info": {"hashes": {"sha256": digest}}}


def test_files_as_published_pass_and_another_is_named(report: Callable[..., Any], tmp_path: Path) -> None:
    version, digest = published("jinja2")
    ours = ("codebrush", "0", {"dir_info": {"editable": True}})
    done = report(("Jinja2", version, stated(digest)), ours)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 files are as published\n", "")
    done = report(("jinja2", version, stated("0" * 64)), ours, ("unknown-package", "1.0", stated(digest)))
    assert done.returncode == 1
    assert done.stdout == "0 files are as published; without a hash: unknown-package 1.0\n"
    assert done.stderr.startswith(f"not a file that was published when hashes.txt was made: jinja2 {version}")
    assert report(("jinja2", version, stated("0" * 64)), strict=False).returncode == 0


def test_a_file_of_this_machine_is_hashed(report: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a b.whl").write_bytes(b"changed")
    version, _ = published("jinja2")
    place = {"url": (tmp_path / "a b.whl").as_uri(), "archive_info": {}}
    assert report(("jinja2", version, place)).returncode == 1
    assert script().hash_of({"download_info": place}) == hashlib.sha256(b"changed").hexdigest()


BACKEND = """
import shutil

def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("codebrush-0-py3-none-any.whl", folder).rpartition("/")[2]
"""


def write_wheel(folder: Path, name: str, version: str, more: str = "") -> None:
    """A wheel with nothing in it."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: a\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


@pytest.mark.long  # three environments, each with a pip of its own
def test_a_file_that_did_not_pass_is_not_there_at_the_next_make(tmp_path: Path) -> None:
    """With the project's Makefile, pip and a changed jinja2; the project itself is an empty one."""
    for name in ("Makefile", "hashes.txt", "constraints.txt", "scripts/check_hashes.py", "src/codebrush/version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    needs = "Provides-Extra: dev\nRequires-Dist: jinja2; extra == 'dev'\n"
    write_wheel(tmp_path, "codebrush", "0", needs)
    write_wheel(tmp_path, "jinja2", published("jinja2")[0])
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    kept |= {"CI": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    venv = tmp_path / ".venv"

    def make(target: str) -> subprocess.CompletedProcess[str]:
        call = ["make", f"PYTHON={sys.executable}", target]
        return subprocess.run(call, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=300)

    for _ in range(2):
        done = make(".venv/.installed-dev")
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"not a file that was published when hashes.txt was made: jinja2 {published('jinja2')[0]}" in done.stderr
        assert not list(venv.glob(".installed-*"))
        assert list(venv.glob("lib/*/site-packages/jinja2-*"))
    done = make(".venv/.installed-demo")  # which does not need it
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(venv.glob("lib/*/site-packages/jinja2-*"))
    assert [path.name for path in venv.glob(".*")] == [".installed-demo"]


# What runs or builds what others wrote: names that are called, and attributes of modules.
NEVER = {"eval", "exec", "compile", "__import__", "execfile"}
NEVER_OF = {
    "yaml": {"load", "load_all", "full_load", "unsafe_load"}, "marshal": {"load", "loads"}, "os": {"system", "popen"},
    "pickle": {"load", "loads", "dump", "dumps", "Unpickler", "_Unpickler"}, "shelve": {"open"}, "jit": {"load"},
    "joblib": {"load"}, "dill": {"load", "loads"}, "subprocess": {"getoutput", "getstatusoutput"},
    # of torch.distributed: unpickle the table of contents, and each entry that it calls bytes
    "checkpoint": {"load", "load_state_dict", "FileSystemReader"}, "state_dict_loader": {"load", "load_state_dict"},
    "filesystem": {"FileSystemReader"}, "format_utils": {"dcp_to_torch_save"},
}  # fmt: skip
# Where it is told what it must not build: sharded checkpoints; pickles that are followed with stand-ins.
MAY = {
    "src/codebrush/training/engine/sharded_files.py": {
        "pickle.Unpickler",
        "checkpoint.load",
        "checkpoint.FileSystemReader",
    },
    "src/codebrush/conversion/pickles.py": {"pickle.Unpickler"},
}


def calls(source: str) -> Iterator[str]:
    """What of a source may run what others wrote, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            owner = (node.module or "").rpartition(".")[2]
            unsafe = NEVER_OF.get(owner, set()) | ({"load"} if owner == "torch" else set())
            yield from (f"{node.lineno}: {owner}.{each.name}" for each in node.names if each.name in unsafe)
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if node.attr in NEVER_OF.get(owner, ()):
                yield f"{node.lineno}: {owner}.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        options = {option.arg: option.value for option in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in NEVER:
            yield f"{node.lineno}: {node.func.id}"
        elif isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value).rpartition(".")[2], node.func.attr
            safely = options.get("weights_only")
            if (owner, name) == ("torch", "load") and not (isinstance(safely, ast.Constant) and safely.value is True):
                yield f"{node.lineno}: torch.load without weights_only"
            if (owner, name) in (("np", "load"), ("numpy", "load")) and "allow_pickle" in options:
                yield f"{node.lineno}: pickles in arrays"
        if any(option.arg == "shell" for option in node.keywords):
            yield f"{node.lineno}: through a shell"


def test_nothing_in_the_package_runs_what_others_wrote() -> None:
    files = sorted((ROOT / "src").rglob("*.py"))
    assert len(files) > 300
    found = {str(path.relative_to(ROOT)): list(calls(path.read_text(encoding="utf-8"))) for path in files}
    named = {path: {line.partition(": ")[2] for line in lines} for path, lines in found.items() if lines}
    assert named == MAY, found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "yaml.load(x)", "pickle.loads(x)", "torch.load(path)", "torch.load(p, weights_only=off)",
        "torch.jit.load(p)", "np.load(p, allow_pickle=True)", "subprocess.run(x, shell=True)", "os.system(x)",
        "torch.distributed.checkpoint.load(x)", "from torch.distributed.checkpoint import load",
        "class Reader(pickle.Unpickler): pass", "from pickle import Unpickler", "read = pickle.loads",
        "from torch import load",
    ],
)  # fmt: skip
def test_what_would_run_it_is_seen(source: str) -> None:
    assert list(calls(source))


def test_what_is_safe_is_allowed() -> None:
    assert list(calls("model.eval()\nre.compile(x)\ntorch.load(p, weights_only=True)\nyaml.safe_load(x)")) == []
