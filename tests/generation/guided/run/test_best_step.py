"""The scorer in a guided run: the best step is kept, a falling score ends the run, and both are repeated exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, read_manifest
from codebrush.errors import PackError
from codebrush.generation.guided.guide_options import GuideOptions, guide_options, usual_preset
from codebrush.generation.guided.guided_request import GuidedRequest
from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.guided.run.guided_run import GuidedRun
from packs import micro_clip, write_micro_pack

QUICK: dict[str, Any] = {
    "init": "random", "steps": 12, "cutouts": 4, "precision": "float32", "learning_rate": 0.3, "show_every": 1,
    "keep": "best", "score_every": 2, "score_patience": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def brush(tmp_path_factory: pytest.TempPathFactory) -> Codebrush:
    """A pack with a scorer of other weights than its CLIP's, for which scores below 0 are unlikely."""
    torch.manual_seed(77)
    folder = write_micro_pack(
        tmp_path_factory.mktemp("scored") / "pack",
        scorer=micro_clip(),
        extras={"scores": {"likely": 0.5, "unlikely": 0}},
    )
    return Codebrush.from_pretrained(folder, device="cpu")


def finish(run: GuidedRun) -> GuidedRun:
    for _ in run:
        pass
    return run


def plain_scores(brush: Codebrush, folder: Path, index: int, prompt: str = "a dog") -> dict[int, float]:
    """The scorer's cosine of every stored step of a picture, computed plainly from its file."""
    assert brush.scorer is not None
    clip, tokenizer = brush.scorer.clip, brush.scorer.tokenizer
    found = {}
    for file in sorted((folder / "pictures").glob(f"*_{index:02d}.png")):
        pixels = torch.tensor(list(decode_image(file).tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
        cosine = (clip.encode_image(pixels) * clip.encode_text(tokenizer([prompt]))).sum()
        found[int(file.name[:6])] = float(cosine)
    return found


def test_the_step_with_the_best_score_is_kept(brush: Codebrush, tmp_path: Path) -> None:
    run = finish(brush.guide("a dog", n=3, folder=tmp_path / "run", **{**QUICK, "batch_size": 2}))
    steps = set()
    for index in range(3):
        scores = {step: score for step, score in plain_scores(brush, tmp_path / "run", index).items() if step % 2 == 0}
        best = max(scores, key=lambda step: scores[step])
        manifest = read_manifest(run.paths[index])
        assert manifest["steps"] == best
        assert manifest["scorer"]["score"] == pytest.approx(scores[best], abs=1e-5)
        assert run.starts[index] == pytest.approx(scores[0], abs=1e-5)
        stored = tmp_path / "run" / "pictures" / f"{best:06d}_{index:02d}.png"
        assert decode_image(run.paths[index]).tobytes() == decode_image(stored).tobytes()
        steps.add(best)
    assert steps != {12}  # otherwise the last step would do
    ranks = [result.judged for result in run.results]
    assert ranks == sorted(ranks, key=lambda score: -(score or 0))
    assert run.steps_taken == 12


def test_without_it_the_last_step_is_kept(brush: Codebrush) -> None:
    run = finish(brush.guide("a dog", **{**QUICK, "keep": "last"}))
    assert run.results[0].manifest["steps"] == 12
    assert run.starts == {}
    assert run.results[0].judged is not None


def test_a_score_that_no_longer_rises_ends_the_run(brush: Codebrush, tmp_path: Path) -> None:
    run = finish(brush.guide("a dog", folder=tmp_path / "run", **{**QUICK, "steps": 40, "score_patience": 4}))
    (result,) = run.results
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert run.steps_taken == len(lines) == result.manifest["steps"] + 4 < 40
    assert lines[-1]["note"] == "no better score for 4 steps: stopped"
    assert [line["step"] for line in lines if "scorer" in line] == list(range(2, len(lines) + 1, 2))


def test_the_picture_is_made_again_without_asking_the_scorer(brush: Codebrush) -> None:
    run = finish(brush.guide("a dog", n=3, seed=2, **{**QUICK, "batch_size": 2, "score_patience": 4}))
    for result in run.results:
        again = brush.replay(json.loads(json.dumps(result.manifest)))
        assert again.image.tobytes() == result.image.tobytes()
        assert json.dumps(again.manifest) == json.dumps(result.manifest)


def test_a_stopped_run_goes_on_to_the_same_choice(brush: Codebrush, tmp_path: Path) -> None:
    options = {**QUICK, "n": 2, "batch_size": 2}
    whole = finish(brush.guide("a dog", folder=tmp_path / "whole", **options))
    stopped = brush.guide("a dog", folder=tmp_path / "stopped", **options)
    for step in stopped:
        if step.step == 7:
            break
    resumed = finish(brush.resume(tmp_path / "stopped"))
    assert [each.manifest["steps"] for each in resumed.results] == [each.manifest["steps"] for each in whole.results]
    assert [each.image.tobytes() for each in resumed.results] == [each.image.tobytes() for each in whole.results]
    assert resumed.starts == whole.starts


def test_a_resumed_run_knows_what_the_scorer_said_of_finished_pictures(brush: Codebrush, tmp_path: Path) -> None:
    options = {**QUICK, "n": 3, "seed": 1}
    whole = finish(brush.guide("a dog", folder=tmp_path / "whole", **options))
    stopped = brush.guide("a dog", folder=tmp_path / "stopped", **options)
    for step in stopped:
        if step.pictures.start == 2:
            break
    finish(brush.resume(tmp_path / "stopped"))
    for folder in ("whole", "stopped"):  # both are finished by now: no step is left
        resumed = brush.resume(tmp_path / folder)
        assert resumed.starts == whole.starts
        for one, other in zip(resumed.results, whole.results, strict=True):
            assert (one.judged, one.verdict, one.manifest["index"]) == (
                other.judged,
                other.verdict,
                other.manifest["index"],
            )
            assert other.judged is not None


def test_nothing_is_kept_from_before_the_last_stage_and_chapter(brush: Codebrush) -> None:
    grown = finish(brush.guide("a dog", **{**QUICK, "grow": 2}))
    assert grown.results[0].image.size == (32, 32)
    assert grown.results[0].manifest["steps"] >= 6
    told = finish(brush.guide("a dog", **{**QUICK, "story": ["a cat"]}))
    assert told.results[0].manifest["steps"] >= 6


def test_the_film_ends_with_the_kept_picture(brush: Codebrush, tmp_path: Path) -> None:
    run = finish(brush.guide("a dog", folder=tmp_path / "run", seed=3, **QUICK))
    kept = run.results[0].manifest["steps"]
    assert 0 < kept < 12
    path = run.write_video(tmp_path / "film.webp", fps=5)
    with Image.open(path) as video:
        assert getattr(video, "n_frames", 1) == kept + 1


def test_a_pack_without_a_scorer_keeps_the_last_step(micro_pack: Path) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    left_out = {name: value for name, value in QUICK.items() if name != "keep"}
    for preset in (None, "sample", "random"):
        assert brush.guide("a dog", preset=preset, **left_out).request.options.keep == "last"
    with pytest.raises(PackError, match="has no scorer"):
        brush.guide("a dog", **QUICK)


def test_a_pictures_start_shows_in_the_usual_values() -> None:
    drawn = guide_options({}, None, usual_preset(None, draws=True))
    assert (drawn.init, drawn.learning_rate, drawn.keep) == ("sample", 0.03, "best")
    for init, draws in (("random", True), (None, False)):
        noise = guide_options({}, None, usual_preset(init, draws=draws))
        assert (noise.init, noise.learning_rate, noise.steps) == ("random", 0.1, 200)
    file = guide_options({}, None, usual_preset("cat.png", draws=False))
    assert (file.init, file.learning_rate) == ("cat.png", 0.03)
    assert GuideOptions().keep == "last"  # what a run made before says nothing of


def test_a_preset_is_not_mixed_with_what_is_usual(brush: Codebrush) -> None:
    found = {preset: brush.guide("a dog", preset=preset).request.options for preset in PRESETS}
    values = {name: (o.init, o.steps, o.learning_rate, o.keep, o.score_patience) for name, o in found.items()}
    assert values == {
        "sample": ("sample", 40, 0.03, "best", 10),
        "random": ("random", 200, 0.1, "best", 60),
        "notebook": ("sine", 400, 0.5, "last", 10),
        "refine": ("sample", 40, 0.05, "best", 10),
    }


def test_a_start_that_clip_chose_is_drawn_by_clip_again(brush: Codebrush) -> None:
    options = {**QUICK, "init": "sample", "steps": 2, "keep": "last"}
    run = finish(brush.guide("a dog", **options))
    manifest = json.loads(json.dumps(run.results[0].manifest))
    assert brush.scorer is not None
    assert manifest["sampling"].pop("scorer") == brush.scorer.digest
    before = brush.replay(manifest)  # as versions without a scorer wrote it
    drawn = brush.generate("a dog", n=1, rerank=4)
    assert drawn[0].judged == max(each.judged or -1 for each in brush.generate("a dog", n=4, rerank=4))
    by_clip = max(brush.generate("a dog", n=4, rerank=4), key=lambda result: result.score)
    plain = brush.guide("a dog", **options).models.sample(GuidedRequest.from_json(manifest), range(1))
    assert torch.equal(plain[0], by_clip.latent)
    assert before.manifest["sampling"] == manifest["sampling"]
    manifest["sampling"]["scorer"] = "another"
    with pytest.raises(PackError, match="another scorer"):
        brush.replay(manifest)
