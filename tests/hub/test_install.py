"""Models are downloaded, converted and made into packs; what is installed is kept, and nothing half-made remains."""

import hashlib
import json
import shutil
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from codebrush.errors import PackError, UsageError
from codebrush.hub.catalogue import Catalogue, load_catalogue
from codebrush.hub.install import install, installed
from codebrush.hub.listing import facts, rows
from codebrush.pack.pack import Pack, open_pack
from golden_files import golden

CONTENT = {"clip.pt": b"clip weights", "vocab.txt": b"words", "vqgan.ckpt": b"vqgan weights"}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """A CLIP of two files, a VQGAN of one file of unknown size and sha256, and the pack of both."""
    (tmp_path / "mirror").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "mirror" / name).write_bytes(content)

    def file(name: str, known: bool) -> dict[str, Any]:
        size, sha256 = len(CONTENT[name]), hashlib.sha256(CONTENT[name]).hexdigest()
        entry = (
            {"path": name, "size": size, "sha256": sha256} if known else {"path": name, "size": None, "sha256": None}
        )
        return {**entry, "mirrors": [str(tmp_path / "mirror" / name)]}

    clip = {"kind": "clip", "title": "A CLIP", "licence": "MIT", "paper": "2103.00020"}
    vqgan = {"kind": "vqgan", "title": "A VQGAN", "licence": "Apache-2.0", "paper": None, "config": {"n_embed": 4}}
    members = {"clip": "a-clip", "vqgan": "a-vqgan"}
    content = {
        "models": {
            "a-clip": clip | {"files": [file("clip.pt", True), file("vocab.txt", True)]},
            "a-vqgan": vqgan | {"files": [file("vqgan.ckpt", False)]},
        },
        "packs": {"both": {"title": "Both", "image_size": 32, "members": members, "defaults": {"cfg": 2.0}}},
    }
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump(content))
    return load_catalogue(tmp_path / "catalogue.yaml")


class Converter:
    """Replaces the conversion: writes one file, and records its arguments."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.seen: list[tuple[list[str], Any, str]] = []

    def __call__(self, source: Path, out: Path, config: Any, *, kind: str) -> dict[str, Any]:
        files = sorted(path.name for path in source.iterdir() if not path.name.startswith("."))
        self.seen.append((files, config, kind))
        assert not out.exists()
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"".join((source / name).read_bytes() for name in files))
        if self.failure is not None:
            raise self.failure
        return {}


@pytest.fixture
def convert() -> Converter:
    return Converter()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_model_is_fetched_and_converted(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    home, said = tmp_path / "home", []
    report = install("a-clip", catalogue, home, say=said.append, convert=convert)
    assert convert.seen == [(["clip.pt", "vocab.txt"], None, "clip")]
    assert report == {
        "name": "a-clip",
        "kind": "clip",
        "title": "A CLIP",
        "licence": "MIT",
        "path": str(home / "models" / "a-clip"),
        "state": "installed",
    }
    assert visible(home / "models" / "a-clip") == ["model.safetensors", "origin.json"]
    assert visible(home / "models") == ["a-clip"]
    assert visible(home / "downloads") == []
    assert said == [
        "fetching a-clip: clip.pt (12 bytes)",
        "fetching a-clip: vocab.txt (5 bytes)",
        "converting a-clip",
    ]


def test_an_installed_model_is_kept(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    install("a-clip", catalogue, tmp_path / "home", convert=convert)
    shutil.rmtree(tmp_path / "mirror")
    assert install("a-clip", catalogue, tmp_path / "home", convert=convert)["state"] == "ready"
    assert len(convert.seen) == 1


def test_a_model_records_where_it_came_from(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    install("a-vqgan", catalogue, tmp_path / "home", convert=convert)
    assert convert.seen == [(["vqgan.ckpt"], {"n_embed": 4}, "vqgan")]
    origin = json.loads((tmp_path / "home" / "models" / "a-vqgan" / "origin.json").read_text())
    assert (origin["kind"], origin["licence"], origin["paper"]) == ("vqgan", "Apache-2.0", None)
    content = CONTENT["vqgan.ckpt"]
    (file,) = origin["files"]
    assert (file["path"], file["size"]) == ("vqgan.ckpt", len(content))
    assert file["sha256"] == hashlib.sha256(content).hexdigest()  # computed, since the catalogue does not have it


def test_the_published_files_can_be_kept(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    install("a-clip", catalogue, tmp_path / "home", keep=True, convert=convert)
    assert visible(tmp_path / "home" / "downloads" / "a-clip") == ["clip.pt", "vocab.txt"]


def test_a_pack_installs_its_models(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    home = tmp_path / "home"
    report = install("both", catalogue, home, convert=convert)
    assert (report["kind"], report["state"], report["path"]) == ("pack", "installed", str(home / "packs" / "both"))
    assert [model["name"] for model in report["models"]] == ["a-clip", "a-vqgan"]
    info = json.loads((home / "packs" / "both" / "pack.json").read_text())
    assert (info["format"], info["name"], info["image_size"]) == (1, "both", 32)
    assert info["licence"] == "clip: MIT; vqgan: Apache-2.0"
    assert info["members"] == {"clip": "../../models/a-clip", "vqgan": "../../models/a-vqgan"}
    assert info["defaults"] == {"cfg": 2.0}
    assert info["provenance"]["kind"] == "published"
    assert info["provenance"]["models"]["clip"]["files"][0]["sha256"] == hashlib.sha256(CONTENT["clip.pt"]).hexdigest()
    assert visible(home / "packs" / "both") == ["pack.json"]
    assert install("both", catalogue, home, convert=convert)["state"] == "ready"


def test_a_missing_model_of_a_pack_is_installed_again(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    install("both", catalogue, tmp_path / "home", convert=convert)
    shutil.rmtree(tmp_path / "home" / "models" / "a-vqgan")
    report = install("both", catalogue, tmp_path / "home", convert=convert)
    assert [model["state"] for model in report["models"]] == ["ready", "installed"]
    assert len(convert.seen) == 3


@pytest.mark.parametrize("failure", [PackError("no such layout"), OSError(28, "No space left on device")])
def test_a_failing_conversion_leaves_the_files_and_no_model(
    failure: Exception, catalogue: Catalogue, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with pytest.raises(PackError, match=r"no such layout|No space left"):
        install("a-clip", catalogue, home, convert=Converter(failure))
    assert visible(home / "models") == []
    assert list((home / "models").glob(".*.part")) == []
    shutil.rmtree(tmp_path / "mirror")  # the next run fetches nothing
    assert install("a-clip", catalogue, home, convert=Converter())["state"] == "installed"


def test_a_failing_member_leaves_no_pack(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "vqgan.ckpt").unlink()
    with pytest.raises(PackError, match=r"vqgan\.ckpt"):
        install("both", catalogue, tmp_path / "home", convert=Converter())
    assert not (tmp_path / "home" / "packs").exists()
    assert visible(tmp_path / "home" / "models") == ["a-clip"]


def test_half_a_model_is_made_again(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    (tmp_path / "home" / "models" / "a-clip").mkdir(parents=True)
    (tmp_path / "home" / "models" / "a-clip" / "junk").write_text("of a run that was killed")
    assert install("a-clip", catalogue, tmp_path / "home", convert=convert)["state"] == "installed"
    assert visible(tmp_path / "home" / "models" / "a-clip") == ["model.safetensors", "origin.json"]


def test_room_for_the_whole_pack_is_checked_first(
    catalogue: Catalogue, convert: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20))
    with pytest.raises(PackError, match="both needs 51 bytes, but 20 bytes are free"):
        install("both", catalogue, tmp_path / "home", convert=convert)
    assert not (tmp_path / "home").exists()


def test_an_unknown_name_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean a-clip"):
        install("a-clap", catalogue, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_built_in_pack_is_there_already(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'emoji' is built in: there is nothing to download"):
        install("emoji", catalogue, tmp_path / "home")


def test_two_at_once_convert_once(catalogue: Catalogue, tmp_path: Path) -> None:
    convert, states, gate = Converter(), [], threading.Event()

    def slow(*arguments: Any, **named: Any) -> dict[str, Any]:
        gate.wait()
        return convert(*arguments, **named)

    def run() -> None:
        states.append(install("both", catalogue, tmp_path / "home", convert=slow)["state"])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(caught) < 2:  # those that wait warn
            threading.Event().wait(0.005)
        gate.set()
        for thread in threads:
            thread.join()
    assert "another process is fetching a-clip: waiting for it" in str(caught[0].message)
    assert sorted(states) == ["installed", "ready", "ready"]
    assert len(convert.seen) == 2


def test_installed_packs_and_models_are_listed(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert installed(home) == []
    install("both", catalogue, home, convert=convert)
    found = {row["name"]: row for row in installed(home)}
    assert [(row["name"], row["kind"]) for row in installed(home)] == [
        ("both", "pack"),
        ("a-clip", "clip"),
        ("a-vqgan", "vqgan"),
    ]
    assert found["both"]["title"] == "Both"
    folder = home / "models" / "a-clip"
    assert found["a-clip"]["size"] == sum(path.stat().st_size for path in folder.iterdir())
    (home / "packs" / "both" / "pack.json").write_text("damaged")
    assert [row["name"] for row in installed(home)] == ["a-clip", "a-vqgan"]


def test_the_listing_has_every_state(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    home = tmp_path / "home"
    install("a-clip", catalogue, home, convert=convert)
    (home / "models" / "a-clip").rename(home / "models" / "old-clip")
    install("a-clip", catalogue, home, convert=convert)
    states = {row["name"]: row["state"] for row in rows(home, catalogue)}
    assert states == {
        "emoji": "built-in",
        "both": "available",
        "a-clip": "installed",
        "a-vqgan": "available",
        "old-clip": "installed",
    }
    sizes = {row["name"]: (row["size"], row["size_is_whole"]) for row in rows(home, catalogue)}
    assert sizes["a-vqgan"] == (None, False)
    assert sizes["both"] == (len(CONTENT["clip.pt"]) + len(CONTENT["vocab.txt"]), False)


def test_the_facts_of_a_pack_include_those_of_its_models(catalogue: Catalogue, tmp_path: Path) -> None:
    found = facts("both", tmp_path / "home", catalogue)
    assert (found["image_size"], found["defaults"], found["path"]) == (32, {"cfg": 2.0}, None)
    clip = found["members"]["clip"]
    assert (clip["name"], clip["licence"], clip["paper"]) == ("a-clip", "MIT", "2103.00020")
    assert [file["path"] for file in clip["files"]] == ["clip.pt", "vocab.txt"]
    assert clip["files"][0]["mirrors"] == [str(tmp_path / "mirror" / "clip.pt")]
    assert json.loads(json.dumps(found)) == found
    assert facts("emoji", tmp_path / "home", catalogue)["image_size"] == 128
    with pytest.raises(UsageError, match="did you mean both"):
        facts("bath", tmp_path / "home", catalogue)


def test_a_home_that_cannot_be_written_is_one_line(catalogue: Catalogue, convert: Converter, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(PackError, match=r"a-clip cannot be written: (Not a directory|File exists); free space there"):
        install("a-clip", catalogue, tmp_path / "home", convert=convert)


def test_a_published_pack_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real conversion: a CLIP in Hugging Face's layout, and taming's VQGAN inside a second stage."""
    clip, vqgan = golden("hf_clip_a"), golden("taming_net2net_a")

    def files(paths: list[Path]) -> list[dict[str, Any]]:
        return [{"path": path.name, "size": None, "sha256": None, "mirrors": [path.as_uri()]} for path in paths]

    shown = {"title": "golden", "licence": "MIT", "paper": None}
    models = {
        "clip": shown
        | {"kind": "clip", "files": files([clip.weights / "model.safetensors", clip.weights / "config.json"])},
        "vqgan": shown | {"kind": "vqgan", "config": vqgan.config, "files": files([vqgan.weights])},
    }
    packs = {"tiny": {"title": "Tiny", "image_size": 32, "members": {"clip": "clip", "vqgan": "vqgan"}}}
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump({"models": models, "packs": packs}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no tokenizer
        install("tiny", load_catalogue(tmp_path / "catalogue.yaml"), tmp_path / "home")
    monkeypatch.setenv("CODEBRUSH_HOME", str(tmp_path / "home"))
    pack = open_pack("tiny")
    assert isinstance(pack, Pack)
    assert not pack.has("transformer")
    assert pack.clip.config.text.embed_dim == pack.clip.config.image.embed_dim
    assert pack.vqgan.config.codebook_size == 64
