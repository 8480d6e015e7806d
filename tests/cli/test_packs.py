"""`codebrush packs`: the list, the facts about one pack or model, and downloads."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from codebrush.cli.main import run
from codebrush.hub.catalogue import load_catalogue
from golden_files import golden


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODEBRUSH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def one_model(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A catalogue with one tiny VQGAN in a local file."""
    tiny = golden("taming_net2net_a")
    file = {"path": "tiny.safetensors", "size": tiny.weights.stat().st_size, "sha256": None}
    entry = {"kind": "vqgan", "title": "Tiny", "licence": "MIT", "paper": None, "config": tiny.config}
    models = {"tiny": entry | {"files": [file | {"mirrors": [tiny.weights.as_uri()]}]}}
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump({"models": models}))
    catalogue = load_catalogue(tmp_path / "catalogue.yaml")
    for place in ("catalogue", "listing"):
        monkeypatch.setattr(f"codebrush.hub.{place}.load_catalogue", lambda: catalogue)
    return "tiny"


def test_the_list_names_packs_and_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "list"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[0].split() == ["name", "kind", "size", "licence", "state"]
    named = {line.split()[0]: line for line in lines[1:]}
    assert named["emoji"].rstrip().endswith("built-in")
    assert named["imagenet"].split() == ["imagenet", "pack", "1.3", "GB", "MIT", "available"]
    assert named["imagenet-1024"].split()[2:5] == ["355", "MB", "+"]
    assert "clip-vit-l14-336" in named
    assert max(len(line.rstrip()) for line in lines) <= 100


def test_facts_are_for_people(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "show", "emoji"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"size: \d+ MB", line) for line in lines)
    assert "styles: fluent-3d, fluent-color, fluent-flat, noto, twemoji" in lines
    assert run(["packs", "show", "imagenet"]) == 0
    out = capsys.readouterr().out
    assert "  size: 980 MB" in out
    assert "size_is_whole" not in out


def test_the_facts_of_a_pack_in_a_folder(home: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "show", str(micro_pack), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["image_size"], report["styles"]) == ("1", 32, None)
    assert report["members"] == {"clip": "clip", "vqgan": "vqgan", "transformer": "transformer"}
    assert report["size"] == sum(file.stat().st_size for file in micro_pack.rglob("*") if file.is_file())


def test_the_list_is_one_object(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "list", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["home"] == str(home)
    imagenet = next(row for row in report["packs"] if row["name"] == "imagenet")
    assert (imagenet["kind"], imagenet["licence"], imagenet["state"]) == ("pack", "MIT", "available")
    assert imagenet["size"] == 353_976_522 + 1_356_917 + 980_092_370


def test_show_prints_all_facts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "show", "imagenet"]) == 0
    output = capsys.readouterr().out
    for fact in (
        "licence: MIT",
        "2103.00020",
        "heibox.uni-heidelberg.de",
        "ViT-B-32.pt",
        "845a68805098",
        "image_size: 256",
    ):
        assert fact in output
    assert run(["packs", "show", "siglip-b16-224", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["licence"], report["kind"], len(report["files"])) == ("Apache-2.0", "clip", 6)
    assert run(["packs", "show", "emoji", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "built-in"


@pytest.mark.parametrize("command", ["show", "download"])
def test_an_unknown_name_is_one_line(command: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", command, "imagnet"]) == 2
    output = capsys.readouterr()
    assert output.err == (
        "codebrush: the catalogue has no pack or model 'imagnet': "
        "did you mean imagenet or imagenet-1024 or imagenet-vitb16?\n"
    )
    assert not home.exists()


def test_a_download_is_ready_to_use(one_model: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "download", one_model]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"tiny is now in {home / 'models' / 'tiny'}", "licence: MIT"]
    assert [line.split(":")[0] for line in output.err.splitlines()] == ["fetching tiny", "converting tiny"]
    assert (home / "models" / "tiny" / "model.safetensors").is_file()
    assert run(["packs", "download", one_model, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["path"]) == ("ready", str(home / "models" / "tiny"))
    assert run(["packs", "list", "--json"]) == 0
    states = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)["packs"]}
    assert states == {"emoji": "built-in", "tiny": "installed"}


def test_home_and_keep_are_respected(one_model: str, home: Path, tmp_path: Path) -> None:
    assert run(["packs", "download", one_model, "--home", str(tmp_path / "here"), "--keep"]) == 0
    assert (tmp_path / "here" / "models" / "tiny" / "config.json").is_file()
    assert (tmp_path / "here" / "downloads" / "tiny" / "tiny.safetensors").is_file()
    assert not home.exists()


def test_offline_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packs", "download", "imagenet"]) == 1  # HF_HUB_OFFLINE is set for all tests
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("codebrush: ViT-B-32.pt cannot be fetched (openaipublic.azureedge.net: offline")
    assert "HF_HUB_OFFLINE" in last


def test_a_full_disk_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000_000))
    assert run(["packs", "download", "imagenet"]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"codebrush: imagenet needs 3.3 GB, but 400 MB are free in {home}: "
        "free some space, or name another folder with --home\n"
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom codebrush.cli.main import run\nrun(['packs', '--help'])\n"
        "print([name for name in ('torch', 'huggingface_hub', 'rich.table', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("list", "show", "download"):
        assert command in done.stdout
