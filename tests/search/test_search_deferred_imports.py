"""A deferred package runs when something is asked of it, and is then as if it had been imported at once."""

import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from codebrush.search.deferred_imports import deferred

RAN = "import time; time.sleep(0.2)\nvalue = __name__\nfrom . import part\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"package_{request.node.name.partition('[')[0]}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(RAN)
    (tmp_path / name / "part.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_submodule_is_imported_without_its_package(package: str):
    with deferred(package):
        part = import_module(f"{package}.part")
    assert part.number == 1
    assert "value" not in vars(sys.modules[package])


def test_whatever_is_asked_of_it_runs_the_package(package: str):
    with deferred(package):
        module = import_module(package)
    assert __import__(package, fromlist=["value"]).value == module.value == package
    assert module.part is sys.modules[f"{package}.part"]
    assert "__getattr__" not in vars(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'missing'"):
        _ = module.missing


def test_the_import_system_sees_the_usual_loader(package: str):
    with deferred(package):
        module = import_module(package)
    plain = import_module("codebrush.search")
    assert type(module.__loader__) is type(plain.__loader__) is type(module.__spec__.loader)
    assert sys.modules[package] is module


def test_a_package_with_its_own_getattr_keeps_it(package: str, tmp_path: Path):
    (tmp_path / package / "__init__.py").write_text("def __getattr__(name): return name.upper()\n")
    with deferred(package):
        module = import_module(package)
    assert (module.some, module.other) == ("SOME", "OTHER")


def test_threads_wait_until_it_has_run(package: str):
    with deferred(package):
        module = import_module(package)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(module.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [package] * 4


def test_an_import_that_fails_can_be_tried_again(package: str, tmp_path: Path):
    file = tmp_path / package / "__init__.py"
    file.write_text("raise ImportError('not today')")
    with deferred(package):
        module = import_module(package)
    with pytest.raises(ImportError, match="not today"):
        _ = module.value
    assert package not in sys.modules
    file.write_text("value = 'mended'")
    assert import_module(package).value == "mended"


def test_a_missing_package_stays_missing():
    with deferred("no_such_package_here"), pytest.raises(ModuleNotFoundError):
        import_module("no_such_package_here")


def test_lancedb_is_imported_without_its_client_for_servers():
    pytest.importorskip("lancedb")
    client = "lance_namespace_urllib3_client"
    code = (
        "import sys\n"
        "from codebrush.search.places import check_installed\n"
        "check_installed()\n"
        f"print([name for name in sys.modules if name.startswith('{client}.api')])\n"
        f"import {client} as client, lance_namespace, lancedb\n"
        "assert sys.meta_path[0].__class__.__module__ != 'codebrush.search.deferred_imports'\n"
        "print(client.TableApi.__name__, client.ApiClient().__class__.__name__)\n"
        "print(client.models.CreateTableResponse is lance_namespace.CreateTableResponse)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "TableApi ApiClient", "True"]
