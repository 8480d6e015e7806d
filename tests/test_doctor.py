"""`codebrush doctor` tells what is there; what is broken is a line of its report, and the rest of it still comes."""

import json
import re
import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from codebrush import doctor
from codebrush.cli.main import run
from codebrush.optional import GIVES, PACKAGES, installed_version

ROOT = Path(__file__).resolve().parents[1]
QUICK = 0.03  # seconds of measuring


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of its own, and small measurements: the figures themselves are not what these tests look at."""
    monkeypatch.setenv("CODEBRUSH_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(doctor.PRODUCT_SIDE, "cpu", 64)
    monkeypatch.setitem(doctor.COPIED_BYTES, "cpu", 2**16)
    monkeypatch.setitem(doctor.examine.__kwdefaults__, "seconds", QUICK)


def test_a_sound_machine_has_no_problem(micro_pack: Path, tmp_path: Path) -> None:
    found = doctor.examine(micro_pack, out=tmp_path / "pictures", room=0)
    assert found["problems"] == []
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["devices"][-1]["name"] == "cpu"
    for speed in ("float32_gflops", "bfloat16_gflops", "copy_gb_per_s"):
        assert found["devices"][-1][speed] > 0
    assert found["pack"]["members"] == ["clip", "vqgan", "transformer"]
    assert found["pack"]["drawn"] == [32, 32]
    places = {row["use"]: row["folder"] for row in found["disk"]}
    assert places["pictures"] == str(tmp_path / "pictures")
    assert places["packs"] == str(tmp_path / "home")
    assert all(0 < row["free"] <= row["size"] for row in found["disk"])
    assert not (tmp_path / "pictures").exists()  # it looks and writes nothing


def test_speed_counts_operations_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_fastest", lambda work, device, seconds: 0.5)
    cpu = torch.device("cpu")
    assert doctor._product_speed(cpu, torch.float32, QUICK) == pytest.approx(2 * 64**3 / 0.5 / 1e9)
    assert doctor._copy_speed(cpu, QUICK) == pytest.approx(2 * 2**16 / 0.5 / 1e9)


def test_the_first_run_only_warms_up() -> None:
    calls = []
    doctor._fastest(lambda: calls.append(1), torch.device("cpu"), 0)
    assert len(calls) == 2


def test_a_full_disk_is_a_problem_and_the_rest_goes_on(micro_pack: Path, tmp_path: Path, capsys) -> None:
    assert run(["doctor", "--pack", str(micro_pack), "--out", str(tmp_path), "--room", "1e9", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [line.partition(":")[0] for line in found["problems"]] == ["disk"] * 3
    assert re.fullmatch(
        rf"disk: [\d.]+ GB are free for pictures in {tmp_path}, less than 1e\+09 GB: .*", found["problems"][0]
    )
    assert found["pack"]["name"] == "micro"


def test_a_damaged_pack_is_a_problem_and_the_rest_goes_on(micro_pack: Path, tmp_path: Path, capsys) -> None:
    damaged = shutil.copytree(micro_pack, tmp_path / "damaged")
    weights = damaged / "vqgan" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(["doctor", "--pack", str(damaged), "--room", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("pack")
    assert str(damaged / "vqgan") in lines[start + 1]
    assert "damaged" in lines[start + 1]
    assert lines[lines.index("problems") + 1].startswith(f"  pack: {damaged / 'vqgan'}")
    assert any("GFLOP/s" in line for line in lines)
    assert any(line.startswith("  pictures: ") for line in lines)


def test_a_pack_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    found = doctor.examine("nothing-of-the-kind", out=tmp_path, room=0)
    assert found["pack"]["error"].startswith("there is no pack 'nothing-of-the-kind'")
    assert found["problems"] == [f"pack: {found['pack']['error']}"]


def test_any_part_may_fail(micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tmp_path / "meminfo"
    pages.write_text("MemTotal: many kB\n")
    monkeypatch.setattr(doctor, "PAGES", pages)
    found = doctor.examine(micro_pack, out=tmp_path, room=0)
    (problem,) = found["problems"]
    assert problem == f"machine: {found['machine']['error']}"
    assert "many" in problem
    assert found["pack"]["name"] == "micro"
    assert found["disk"][0]["use"] == "pictures"


def test_a_missing_extra_is_no_problem_and_says_what_it_would_give(
    micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    assert run(["doctor", "--pack", str(micro_pack), "--out", str(tmp_path), "--room", "0"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  search: ")]
    assert line == f'  search: without LanceDB; would give {GIVES["search"]}: pip install "codebrush[search]"'
    row = next(row for row in doctor._extras() if row["extra"] == "search")
    assert row["packages"]["LanceDB"] is None
    assert row["installed"] is False


def test_versions_are_those_of_the_packages_whatever_they_are_imported_as(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_version("sklearn") == version("scikit-learn")
    assert installed_version("av") == version("av")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert installed_version("sklearn") is None


def test_every_extra_and_its_packages_are_in_the_table() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for_users = {name: lines for name, lines in extras.items() if name not in ("all", "dev", "docs")}
    assert set(GIVES) == set(for_users)
    for extra, lines in for_users.items():
        lines = [line for line in lines if "sys_platform" not in line or f"'{sys.platform}'" in line]
        named = {re.split(r"[^\w.-]", line)[0].lower() for line in lines} - {"codebrush"}
        known = {name.lower() for name, of in PACKAGES.values() if of == extra}
        imported = {package.replace("_", "-") for package, (_, of) in PACKAGES.items() if of == extra}
        assert named <= known | imported, extra
        assert len(named) == len(known)


def test_advice_names_a_busy_machine_and_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"cores": 4, "threads": 1, "load": 9.5}
    assert doctor._advice({"machine": machine}) == [
        "other programs keep the cores busy (load 9.5 on 4): speeds are lower than those of a quiet machine",
        "torch uses 1 of 4 cores: OMP_NUM_THREADS=4 uses all",
    ]
    assert doctor._advice({"machine": {"cores": 2, "threads": 2, "load": 0.3}}) == []
    assert doctor._advice({"machine": {"error": "unknown"}}) == []
