"""Of the VQGANs that a training may begin from the one that knows the pictures is taken, and may stay as it is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_plans import BUDGET, request
from safetensors.torch import load_file, save_file

from codebrush.pack.pack import open_pack
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop import Loop
from codebrush.training.packs import member_training, timing
from codebrush.training.packs.pack_training import train_pack
from codebrush.training.packs.reconstructions import reconstructed_psnr
from codebrush.training.packs.start import BETTER, LOOKED_AT, Start
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import read_plan
from codebrush.training.tasks import code_transformer


def blinded(folder: Path) -> None:
    """Make the VQGAN in a folder draw black whatever it reads."""
    weights = load_file(folder / "model.safetensors")
    black = {name: torch.full_like(each, -1.0 if name.endswith("bias") else 0.0) for name, each in weights.items()}
    save_file(black, folder / "model.safetensors")


@pytest.fixture(params=["member", "start"])
def with_start(request: pytest.FixtureRequest, pack, tmp_path: Path) -> tuple[Path, bool]:
    """A pack with a further VQGAN to begin from, one of the two blinded, and whether that is the pack's own."""
    folder = tmp_path / "with-start"
    shutil.copytree(pack[0], folder)
    further = folder / "starts" / "photographs"
    shutil.copytree(folder / "vqgan", further)
    info = json.loads((folder / "pack.json").read_text())
    info["starts"] = {"vqgan": {"photographs": {"folder": "starts/photographs", "licence": "CC BY-SA 4.0"}}}
    (folder / "pack.json").write_text(json.dumps(info))
    blinded(folder / "vqgan" if request.param == "member" else further)
    return folder, request.param == "member"


def test_the_vqgan_that_reconstructs_the_pictures_better_is_begun_from(
    with_start: tuple[Path, bool], shapes: Path, tmp_path: Path
):
    folder, takes_further = with_start
    data = load_captioned(SourceConfig(str(shapes)).open(), 16, tmp_path / "cache")
    start = Start(folder, STAGES.values(), 16)
    assert "transformer" in start.fits
    start.choose_vqgan(data)
    assert start.chosen == ("photographs" if takes_further else None)
    own = open_pack(folder).vqgan
    begun = start.model(STAGES["vqgan"])
    assert begun is not None
    figures = [reconstructed_psnr(each, data, LOOKED_AT) for each in (own, begun[0])]
    assert start.psnr == pytest.approx(figures[1])
    if takes_further:
        assert figures[1] > figures[0] + BETTER
        assert start.origin(STAGES["vqgan"]) == "from micro's for photographs"
        assert start.keeps(STAGES["vqgan"])
        assert start.keeps(STAGES["clip"])
        assert not start.keeps(STAGES["transformer"])
        facts = start.facts()
        assert facts is not None
        assert facts["vqgan"] == "photographs"
        assert facts["licence"] == "CC0-1.0; its VQGAN for photographs: CC BY-SA 4.0"
    else:
        assert start.origin(STAGES["vqgan"]) == "from micro"
        assert all(start.keeps(STAGES[name]) for name in ("clip", "vqgan", "transformer"))
        assert "vqgan" not in (start.facts() or {})


@pytest.mark.parametrize("known", [False, True])
def test_a_vqgan_that_knows_the_pictures_is_left_as_it_is_and_its_time_goes_to_the_others(
    known: bool, pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(member_training, "KNOWN", 0.1 if known else 99.0)
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    said: list[str] = []
    report = train_pack(given, said.append)
    assert ("vqgan" in report["stages"]) == (not known)
    ours, theirs = (open_pack(folder).vqgan.state_dict() for folder in (tmp_path / "second", pack[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) == known
    assert "transformer" in report["stages"] or not known
    assert sum("are timed on this machine" in line for line in said) == 1
    if known:
        line = next(line for line in said if line.startswith("  vqgan"))
        assert line.split(maxsplit=1)[1].startswith("micro's is taken as it is: it reconstructs these pictures with ")
        assert report["kept"]["vqgan"] == "micro"
        assert report["stages"]["transformer"]["from"] == "micro"


def test_a_vqgan_that_has_seen_such_pictures_is_trained_with_small_steps(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    run = Loop.run

    def planned(loop: Loop, **given: Any) -> Any:  # of the VQGAN the plan is enough
        return pytest.fail("planned") if loop.result == "vqgan" else run(loop, **given)

    monkeypatch.setattr(Loop, "run", planned)
    for name, seen in (("usual", member_training.SEEN), ("known", 0.1)):
        monkeypatch.setattr(member_training, "SEEN", seen)
        given = request(shapes, tmp_path / name, plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
        with pytest.raises(pytest.fail.Exception, match="planned"):
            train_pack(given, lambda text: None)
    rates = [read_plan(tmp_path / f"{name}.work" / "vqgan").recipe.learning_rate for name in ("usual", "known")]
    assert rates[1] == pytest.approx(member_training.SEEN_RATE * rates[0])


def test_where_encoding_takes_long_a_painter_is_trained_on_fewer_pictures_also_when_resumed(
    pack, shapes: Path, tmp_path: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(member_training, "KNOWN", 0.1)
    monkeypatch.setattr(timing, "PROBED", 20)
    monkeypatch.setattr(timing, "ENCODING_SHARE", 1e-6)
    given = request(shapes, tmp_path / "second", plans={}, budget=BUDGET / 2, start=pack[0], image_size=None)
    encoded: list[int] = []
    encode_once = code_transformer.encode_once
    monkeypatch.setattr(
        code_transformer,
        "encode_once",
        lambda vqgan, pixels, folder: encoded.append(len(pixels)) or encode_once(vqgan, pixels, folder),
    )
    step, said = Loop._train_step, []

    def stops(loop: Loop, batch: Any) -> None:
        step(loop, batch)
        if any(line.startswith("transformer: ") for line in said) and loop.step == 3 and loop.saved is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train_pack(given, said.append)
    assert "transformer: 20 of 40 pictures: to encode all would take too long" in said
    monkeypatch.setattr(Loop, "_train_step", step)
    report = train_pack(replace(given, resume=True), said.append)
    assert encoded == [20, 20, 20]
    assert report["stages"]["transformer"]["pictures"] > 20
    assert open_pack(tmp_path / "second").has("transformer")
