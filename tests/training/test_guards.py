"""What goes wrong while a loss looks well is noticed within the stated steps, said in one line with the remedy, and
healed where that is known, also across a resume; each fault is provoked in a real run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped_runs import run_part

from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.errors import TrainingError
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.guards import (
    GUARDS_FILE,
    MOST_CURES,
    PATIENCE,
    Fault,
    Guard,
    Guards,
    falls,
    held_out_rows,
    lasts,
    learned_by_heart,
    looked_at,
)
from codebrush.training.run_folder import read_plan
from codebrush.training.run_stage import make_network, make_task, run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.captioner import CaptionerRecipe, repeats
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe
from packs import micro_clip

EVERY = 5
LOOP = LoopConfig(
    steps=40, batch_size=8, warmup=1, ema_decay=0.5, precision="32-true", threads=1, log_every=40, checkpoint_every=40,
    preview_every=0, guard_every=EVERY,
)  # fmt: skip
VQGAN_RECIPE = VQGANRecipe(
    image_size=16, channels=8, channel_multipliers=(1, 1, 2), norm_groups=4, latent_channels=8, code_dim=4,
    codebook_size=64, perceptual=0.0, adversarial=0.0,
)  # fmt: skip
GAN_RECIPE = replace(
    VQGAN_RECIPE, adversarial=30.0, adversarial_from=0.5, discriminator_channels=8, discriminator_layers=1,
    discriminator_rate=1e-2, learning_rate=5e-3,
)  # fmt: skip
GAN_LOOP = replace(LOOP, steps=60)


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Forty small scenes with codes at random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scenes")
    write_shapes(folder / "scenes", 40, size=16, objects=1)
    data = load_captioned(SourceConfig(str(folder / "scenes")).open(), 16, folder / "cache")
    codes = np.random.default_rng(0).integers(0, 128, (len(data), 16)).astype(np.int16)
    clip = micro_clip(Tokenizer.wordpiece().vocab_size).requires_grad_(False)
    vqgan = VQGAN(replace(vqgan_micro(), image_size=16, codebook_size=128)).eval()
    return Materials(data, {"clip": Tokenizer.wordpiece()}, {"clip": clip, "vqgan": vqgan}, codes=codes)


def record(folder: Path) -> dict:
    return json.loads((folder / GUARDS_FILE).read_text())


def collapsed(plan: StagePlan, materials: Materials) -> VQGAN:
    """A VQGAN of whose codes one is near all pictures, and all others far from them."""
    start = make_network(plan, materials)
    assert isinstance(start, VQGAN)
    images = materials.data.images(np.arange(40)).float() / 255
    with torch.no_grad():
        mean = torch.nn.functional.normalize(start.encode(images), dim=1).mean((0, 2, 3))
    start.quantizer.codebook.data.copy_(-mean + 0.1 * torch.randn(64, 4))  # pyright: ignore
    start.quantizer.codebook.data[0] = mean  # pyright: ignore
    start.quantizer.initialised.fill_(True)  # pyright: ignore
    return start


def test_a_collapsed_codebook_is_made_anew(materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = StagePlan("vqgan", VQGAN_RECIPE, LOOP)
    run_stage(plan, materials, tmp_path / "run", start=collapsed(plan, materials))
    found = record(tmp_path / "run")
    assert found["cures"] == [[PATIENCE * EVERY, "codebook"]]
    codes = [values["codes_used"] for _, values in found["measured"]]
    assert max(codes[:PATIENCE]) <= 2
    assert min(codes[-2:]) > 20
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
    assert said == ("run: step 15: few codes are used, the codebook has collapsed; all codes are made anew by k-means")
    unguarded = replace(plan, loop=replace(LOOP, guard_every=0))
    left = run_stage(unguarded, materials, tmp_path / "left", start=collapsed(plan, materials))
    assert isinstance(left, VQGAN)
    images = materials.data.images(np.arange(40)).float() / 255
    assert len(left.quantize(left.encode(images))[1].unique()) <= 2
    assert not (tmp_path / "left" / GUARDS_FILE).exists()


@pytest.fixture(scope="module")
def healed(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that healed itself, with what it began from in `start`."""
    torch.manual_seed(0)
    folder, plan = tmp_path_factory.mktemp("healed"), StagePlan("vqgan", VQGAN_RECIPE, LOOP)
    start = collapsed(plan, materials)
    start.save_pretrained(folder / "start")
    run_stage(plan, materials, folder / "whole", start=start)
    return folder


@pytest.mark.parametrize("stop_after", [13, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (17, 30))])
def test_a_healed_run_that_was_stopped_ends_at_the_same_bits(
    stop_after: int, healed: Path, materials: Materials, tmp_path: Path
):
    plan = StagePlan("vqgan", VQGAN_RECIPE, LOOP)
    start, whole = (VQGAN.from_pretrained(healed / name) for name in ("start", "whole/model"))
    run_part(plan, materials, tmp_path / "part", stop_after, start=start)
    start = VQGAN.from_pretrained(healed / "start")
    again = run_stage(plan, materials, tmp_path / "part", resume=True, start=start)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert record(tmp_path / "part") == record(healed / "whole")


def test_the_weight_of_a_harmful_discriminator_is_halved(
    materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plan = StagePlan("vqgan", GAN_RECIPE, GAN_LOOP)
    run_stage(plan, materials, tmp_path / "run")
    found = record(tmp_path / "run")
    (step, name), *_ = found["cures"]
    assert name == "adversary"
    assert GAN_LOOP.steps // 2 < step <= GAN_LOOP.steps // 2 + (PATIENCE + 1) * EVERY
    assert re.search(
        rf"step {step}: .* pictures worse, by more than 1.5 dB; the weight .* is halved", capsys.readouterr().err
    )
    run_part(plan, materials, tmp_path / "part", step + 2)
    again = run_stage(plan, materials, tmp_path / "part", resume=True)
    whole = VQGAN.from_pretrained(tmp_path / "run" / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_generator_that_learns_by_heart_is_noticed(
    materials: Materials, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = TransformerRecipe(
        width=64, layers=1, heads=2, text_length=4, dropout=0.0, condition_dropout=0.0, learning_rate=1e-2
    )
    loop = replace(LOOP, steps=90, held_out=10)
    run_stage(StagePlan("transformer", recipe, loop), materials, tmp_path / "run")
    found = record(tmp_path / "run")
    ((step, name),) = found["reported"]
    assert name == "by heart"
    lowest = min(found["measured"], key=lambda each: each[1]["held_out_loss"])[0]
    assert step <= lowest + 2 * PATIENCE * EVERY
    said = [line for line in capsys.readouterr().err.splitlines() if "by heart" in line]
    assert len(said) == 1
    assert "raise recipe.code_noise or recipe.dropout" in said[0]


@pytest.mark.parametrize(
    ("captions", "rate", "fault", "line"),
    [
        (
            ("{background} {background} {background}",),
            1e-2,
            "repeating_captions",
            "most captions repeat the same words",
        ),
        ((), 1e-8, "equal_captions", "nearly all pictures get the same caption"),
    ],
)
def test_a_captioner_that_repeats_itself_is_noticed(
    captions: tuple[str, ...], rate: float, fault: str, line: str, materials: Materials, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    source = replace(SourceConfig(materials.data.source.origin), captions=captions).open()
    data = load_captioned(source, 16, tmp_path / "cache")
    recipe = CaptionerRecipe(
        width=32, layers=1, heads=2, vocab_size=300, context_length=24, stem=16, learning_rate=rate
    )
    run_stage(StagePlan("captioner", recipe, replace(LOOP, steps=60)), replace(materials, data=data), tmp_path / "run")
    found = record(tmp_path / "run")
    shown = [step for step, values in found["measured"] if step > 15 and values[fault] > 0.8]
    assert [shown[0] + (PATIENCE - 1) * EVERY, fault] in found["reported"]
    (said,) = [each for each in capsys.readouterr().err.splitlines() if line in each]
    assert "lower recipe.learning_rate or raise recipe.dropout" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [([1, 1, 1], True), ([5, 1, 2, 1, 2, 1, 2], True), ([1, 2, 1, 2], False), ([1, 1, 2, 2], False), ([], False)],
)
def test_three_times_the_same_is_a_repeat(words: list[int], expected: bool):
    assert repeats(words) is expected


def history(**columns: list[float]) -> list[tuple[int, dict[str, float]]]:
    return [
        (step, dict(zip(columns, row, strict=True))) for step, row in enumerate(zip(*columns.values(), strict=True))
    ]


def test_a_fault_must_last():
    assert lasts(history(x=[9, 1, 1, 1]), "x", lambda value: value < 2)
    assert not lasts(history(x=[1, 1, 9, 1]), "x", lambda value: value < 2)
    assert not lasts(history(x=[1, 1]), "x", lambda value: value < 2)
    assert falls(history(x=[20, 24, 22, 22, 22]), "x", 1.5)
    assert not falls(history(x=[20, 24, 22, 23, 22]), "x", 1.5)
    assert learned_by_heart(history(held_out_loss=[4, 3, 3.2, 3.3, 3.4], trained_loss=[4, 3, 2.5, 2, 1]))
    assert not learned_by_heart(history(held_out_loss=[4, 3, 3.2, 3.3, 3.4], trained_loss=[4, 3, 3.5, 3.5, 3.5]))
    assert not learned_by_heart(history(held_out_loss=[4, 3, 2.9, 2.8, 2.7], trained_loss=[4, 3, 2.5, 2, 1]))


def lines_of(worked: list[bool], folder: Path, stop: int = 0) -> list[str]:
    """What a guard says over looks at a value that is wrong where `worked` is False, of which one is taken up anew
    after `stop` looks."""
    guard = Guard(
        lambda network: {"wrong": float(not worked.pop(0))},
        [Fault("fault", lambda values: lasts(values, "wrong", bool), "it is wrong: do that", list, "this is done")],
    )
    guards, lines = Guards(guard, 1, folder), []
    guards.check(0, torch.nn.Identity)
    for step in range(1, len(worked) + 1):
        if step == stop + 1 and stop:
            guards = Guards(guard, 1, folder)
            guards.check(stop, torch.nn.Identity)
        lines += guards.check(step, torch.nn.Identity).lines
    return lines


@pytest.mark.parametrize("stop", [0, 4, 6, 7])
def test_a_fault_that_healing_does_not_help_is_said_after_the_first_time(stop: int, tmp_path: Path):
    assert lines_of([False] * 30, tmp_path, stop) == [
        f"step {PATIENCE}: it is wrong; this is done",
        f"step {2 * PATIENCE}: it is wrong: do that; this is done",
        f"step {3 * PATIENCE}: it is wrong; this is done",
    ]


def test_a_fault_that_comes_back_is_said_when_it_is_healed_no_more(tmp_path: Path):
    lines = lines_of(([False] * PATIENCE + [True]) * 6, tmp_path)
    assert len(lines) == MOST_CURES + 1
    assert all(line.endswith("it is wrong; this is done") for line in lines[:-1])
    assert lines[-1].endswith("it is wrong: do that")


def test_a_run_begun_without_guards_goes_on_without(materials: Materials, tmp_path: Path):
    plan = StagePlan("vqgan", VQGAN_RECIPE, LOOP)
    run_part(plan, materials, tmp_path / "run", 2)
    (tmp_path / "run" / GUARDS_FILE).unlink(missing_ok=True)
    stored = json.loads((tmp_path / "run" / "stage.json").read_text())
    del stored["loop"]["guard_every"], stored["loop"]["held_out"]
    (tmp_path / "run" / "stage.json").write_text(json.dumps(stored))
    older = read_plan(tmp_path / "run")
    assert (older.loop.guard_every, older.loop.held_out) == (0, 0)
    run_stage(older, materials, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / GUARDS_FILE).exists()


def test_rows_that_are_held_out_are_never_trained_on(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = StagePlan("vqgan", VQGAN_RECIPE, replace(LOOP, steps=12, held_out=8, guard_every=0))
    task, seen = type(make_task(plan, materials, make_network(plan, materials))), set()
    batch = task.batch
    monkeypatch.setattr(task, "batch", lambda self, rows, rng: seen.update(rows.tolist()) or batch(self, rows, rng))
    run_stage(plan, materials, tmp_path / "run")
    held = held_out_rows(40, 8)
    assert seen == set(range(40)) - set(held.tolist())
    assert looked_at(40, 8).tolist() == held.tolist()
    with pytest.raises(TrainingError, match="held_out 30 is more than half of 40 pictures"):
        run_stage(replace(plan, loop=replace(plan.loop, held_out=30)), materials, tmp_path / "other")
