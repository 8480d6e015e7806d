"""Guided runs as people start them: what a folder holds, that a killed run goes on exactly, and what is refused."""

import json
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import load_file

from codebrush import Codebrush
from codebrush.data.decoding.images import decode_image, read_manifest, save_png
from codebrush.errors import CodebrushError, ImageError, PackError, PromptError, UsageError
from codebrush.generation.guided.run.guided_run import GuidedRun
from codebrush.generation.guided.run.run_folder import STATE_FILE
from packs import micro_flow, write_micro_pack

QUICK: dict[str, Any] = {"init": "random", "steps": 4, "cutouts": 4, "show_every": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


def finish(run: GuidedRun) -> GuidedRun:
    for _ in run:
        pass
    return run


def pixels(run: GuidedRun) -> list[bytes]:
    return [result.image.tobytes() for result in run.results]


def furthest(one: bytes, other: bytes) -> int:
    """The largest difference of two pictures' bytes, in levels of 255."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_run_lies_in_its_folder(brush: Codebrush, tmp_path: Path) -> None:
    run = finish(brush.guide("a red circle", seed=3, folder=tmp_path / "run", **QUICK))
    folder = tmp_path / "run"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "run.json", "state.pt", "losses.jsonl", "picture_00.png", "picture_00.safetensors",
        "pictures/000000_00.png", "pictures/000002_00.png", "pictures/000004_00.png",
        "latents/000000_00.safetensors", "latents/000002_00.safetensors", "latents/000004_00.safetensors",
    }  # fmt: skip
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]
    assert {"loss", "similarity", "guidance", "learning_rate"} <= set(lines(folder)[0])
    (result,) = run.results
    stored = load_file(folder / "picture_00.safetensors")
    assert torch.equal(stored["codes"], result.codes)
    assert decode_image(run.paths[0]).tobytes() == result.image.tobytes()
    manifest = read_manifest(run.paths[0])
    assert manifest == json.loads(json.dumps(result.manifest))
    assert (manifest["method"], manifest["prompt"], manifest["seed"]) == ("guide", "a red circle", 3)
    assert brush.score(result.image, "a red circle") == pytest.approx(result.score, abs=1e-5)


def test_a_picture_is_drawn_again_from_its_manifest(brush: Codebrush, tmp_path: Path) -> None:
    save_png(Image.new("RGB", (40, 30), "red"), tmp_path / "red.png")
    options = {**QUICK, "image_prompt": f"{tmp_path / 'red.png'}:0.5", "init": str(tmp_path / "red.png")}
    run = finish(brush.guide("a red circle:1.5 | blue:-0.5", n=3, seed=1, **{**options, "batch_size": 2}))
    for result in run.results:
        assert brush.replay(json.loads(json.dumps(result.manifest))).image.tobytes() == result.image.tobytes()
    save_png(Image.new("RGB", (40, 30), "blue"), tmp_path / "red.png")
    with pytest.raises(ImageError, match=r"red\.png has changed"):
        brush.replay(run.results[0].manifest)


def test_another_clip_under_the_same_name_is_refused(brush: Codebrush, tmp_path: Path) -> None:
    judge = write_micro_pack(tmp_path / "judge", seed=4)
    run = finish(brush.guide("a dog", other_clip=f"{judge}:0.5", own_clip_weight=0.7, **QUICK))
    manifest = json.loads(json.dumps(run.results[0].manifest))
    assert brush.replay(manifest).image.tobytes() == run.results[0].image.tobytes()
    options = manifest["options"]  # as version 0.2 wrote them
    options |= {"judge": options.pop("other_clip"), "judge_weight": options.pop("own_clip_weight")}
    assert brush.replay(manifest).image.tobytes() == run.results[0].image.tobytes()
    write_micro_pack(judge, seed=5)
    with pytest.raises(ImageError, match=r"model\.safetensors has changed"):
        brush.replay(run.results[0].manifest)


def test_generate_guides(brush: Codebrush) -> None:
    calls: list[tuple[int, int]] = []
    results = brush.generate(
        "a dog", n=2, seed=4, method="guide", progress=lambda *call: calls.append(call), batch_size=1, **QUICK
    )
    assert calls == [(1, 8), (2, 8), (3, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 8)]
    assert results[0].score >= results[1].score
    assert sorted(result.manifest["index"] for result in results) == [0, 1]
    assert {result.manifest["seed"] for result in results} == {4}


def test_a_picture_depends_on_its_seed_and_index_alone(brush: Codebrush) -> None:
    one, two = (finish(brush.guide("a dog", n=2, seed=seed, **QUICK)) for seed in (0, 0))
    other = finish(brush.guide("a dog", n=2, seed=1, **QUICK))
    assert pixels(one) == pixels(two)
    assert not set(pixels(one)) & set(pixels(other))
    single = finish(brush.guide("a dog", n=1, seed=0, **QUICK))
    assert pixels(single)[0] in pixels(one)


def guide_to_the_end(pack: Path, folder: Path) -> None:
    """Begin a run in `folder`, or go on with the one that is there."""
    torch.set_num_threads(1)
    brush = Codebrush.from_pretrained(pack, device="cpu")
    if (folder / "losses.jsonl").exists():
        finish(brush.resume(folder))
    else:
        options = {"steps": 24, "cutouts": 6, "show_every": 7, "batch_size": 1, "ema": 0.9, "precision": "auto"}
        finish(brush.guide("a red circle", 2, 3, folder=folder, **options))


def start(processes: ForkServerContext, pack: Path, folder: Path) -> ForkServerProcess:
    process = processes.Process(target=guide_to_the_end, args=(pack, folder))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(micro_pack: Path, processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(processes, micro_pack, folder)
    process.join(300)
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("killed_after", [9, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 30))])
def test_a_killed_run_goes_on_to_the_same_bits(
    micro_pack: Path, whole: Path, processes: ForkServerContext, tmp_path: Path, killed_after: int
) -> None:
    broken = tmp_path / "broken"
    process = start(processes, micro_pack, broken)
    losses = broken / "losses.jsonl"
    while process.is_alive():
        if losses.exists() and losses.read_bytes().count(b"\n") >= killed_after:
            process.kill()
            break
        time.sleep(0.002)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = start(processes, micro_pack, broken)
    resumed.join(300)
    assert resumed.exitcode == 0
    assert (broken / "losses.jsonl").read_bytes() == (whole / "losses.jsonl").read_bytes()
    for path in sorted(whole.rglob("*.png")):
        there = broken / path.relative_to(whole)
        assert decode_image(there).tobytes() == decode_image(path).tobytes(), there
    for path in sorted(whole.rglob("*.safetensors")):
        one, two = load_file(path), load_file(broken / path.relative_to(whole))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_that_was_stopped_between_steps_goes_on(brush: Codebrush, tmp_path: Path) -> None:
    whole = finish(brush.guide("a dog", folder=tmp_path / "whole", **QUICK))
    stopped = iter(brush.guide("a dog", folder=tmp_path / "stopped", **QUICK))
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    resumed = finish(brush.resume(tmp_path / "stopped"))
    assert pixels(resumed) == pixels(whole)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    again = finish(brush.resume(tmp_path / "stopped"))
    assert pixels(again) == pixels(whole)
    assert again.results[0].manifest == json.loads(json.dumps(resumed.results[0].manifest))


def test_a_picture_has_its_own_events(brush: Codebrush, tmp_path: Path) -> None:
    still = {**QUICK, "steps": 9, "patience": 2, "learning_rate": 1e-9}
    stopped = iter(brush.guide("a dog", n=2, folder=tmp_path / "run", **still))
    while next(stopped).pictures.start == 0:  # the second picture has begun
        pass
    stopped.close()  # type: ignore[attr-defined]
    state = torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)
    state["events"] = ["an event of the first picture", *state["events"]]  # as earlier versions stored it
    torch.save(state, tmp_path / "run" / STATE_FILE)
    runs = [finish(brush.guide("a dog", n=2, **still)), finish(brush.resume(tmp_path / "run"))]
    for result in [result for run in runs for result in run.results]:
        assert result.manifest["steps"] < 9
        assert result.manifest["events"] == ["the loss has not fallen by 0.001 for 2 steps"]


def test_to_iterate_again_is_to_go_on(brush: Codebrush, tmp_path: Path) -> None:
    whole = finish(brush.guide("a dog", **QUICK))
    for folder in (None, tmp_path / "run"):
        run = brush.guide("a dog", folder=folder, **QUICK)
        for step in run:
            if step.step == 3:
                break
        assert [step.step for step in run] == [4]
        assert pixels(run) == pixels(whole)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]


def test_what_cannot_be_resumed_is_refused(brush: Codebrush, tmp_path: Path) -> None:
    with pytest.raises(CodebrushError, match="holds no guided run"):
        brush.resume(tmp_path)
    run = tmp_path / "run"
    finish(brush.guide("a dog", folder=run, **QUICK))
    with pytest.raises(CodebrushError, match=r"holds a run already.*--resume"):
        brush.guide("a dog", folder=run, **QUICK)
    other = Codebrush.from_pretrained(write_micro_pack(tmp_path / "pack", seed=2), device="cpu")
    with pytest.raises(PackError, match="made with the pack 'micro'"):
        other.resume(run)
    (run / "state.pt").write_bytes(b"not a state")
    with pytest.raises(CodebrushError, match=r"state\.pt is damaged"):
        brush.resume(run)
    (run / "run.json").write_text("{")
    with pytest.raises(CodebrushError, match=r"run\.json is damaged"):
        brush.resume(run)


def test_a_refused_run_leaves_nothing(brush: Codebrush, tmp_path: Path) -> None:
    for options, message in (
        ({"max_memory": "10MiB"}, "max_memory of 10 MiB does not suffice"),
        ({"other_clip": "nowhere"}, "there is no pack 'nowhere'"),
        ({"optimizer": "Rprop", "wd": 0.1}, "Rprop has no weight decay: leave out --wd"),
    ):
        with pytest.raises(CodebrushError, match=message):
            finish(brush.guide("a dog", folder=tmp_path / "run", **{**QUICK, **options}))
        assert not (tmp_path / "run").exists()


def test_two_processes_do_not_share_a_folder(brush: Codebrush, tmp_path: Path) -> None:
    run = iter(brush.guide("a dog", folder=tmp_path / "run", **QUICK))
    next(run)
    with pytest.raises(CodebrushError, match="another process is at work"):
        finish(brush.resume(tmp_path / "run"))
    run.close()  # type: ignore[attr-defined]


def test_a_video_is_made_of_the_stored_latents(brush: Codebrush, tmp_path: Path) -> None:
    run = finish(brush.guide("a dog", n=2, folder=tmp_path / "run", **{**QUICK, "show_every": 1}))
    for between, frames in ((0, 5), (2, 13), (None, 53)):  # step 0 is one of them
        path = run.write_video(tmp_path / f"{between}.gif", fps=5, between=between)
        with Image.open(path) as video:
            assert video.size == (32, 32)
            lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(video)]
        assert sum(lengths) == 2 * frames * 200  # Pillow shows one of several frames that are alike for longer
    assert read_mp4(run.write_video(tmp_path / "all.mp4", fps=5, between=2)) == 2 * 13
    with pytest.raises(UsageError, match="give the run a folder"):
        finish(brush.guide("a dog", **QUICK)).write_video(tmp_path / "x.gif")


def read_mp4(path: Path) -> int:
    """The number of frames of an mp4."""
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def guided(brush: Codebrush, prompt: str = "a dog", **options: Any) -> bytes:
    return finish(brush.guide(prompt, **{**QUICK, "steps": 2, **options})).results[0].image.tobytes()


def test_a_stop_ends_the_pull(brush: Codebrush) -> None:
    runs = [guided(brush, prompt, quantise=False) for prompt in ("a dog | a cat", "a dog | a cat:1:9", "a dog")]
    # A stop above every distance leaves nothing to pull. Two texts embedded in one batch may round otherwise than one.
    assert furthest(runs[1], runs[2]) <= 1 < furthest(runs[0], runs[1])


def test_the_micro_batch_shows_in_no_code(brush: Codebrush) -> None:
    runs = [finish(brush.guide("a dog", micro_batch=size, **QUICK)).results[0].codes for size in (1, 3, 0)]
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(runs[1], runs[2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("tempreature", ": did you mean temperature"), ("n", ""), ("size", ""), ("seed", "")],
)
def test_the_drawing_of_the_start_takes_no_other_options(brush: Codebrush, wrong: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong} is not an option of the drawing that guidance starts from{said}"):
        brush.guide("a dog", init="sample", sampling={wrong: 2})


def test_the_sampled_start_is_what_sampling_draws(brush: Codebrush) -> None:
    sampled = brush.generate("a dog", n=2, seed=6, rerank=4, top_k=5)
    run = finish(brush.guide("a dog", n=2, seed=6, init="sample", sampling={"rerank": 4, "top_k": 5}, steps=0))
    for drawn, result in zip(run.results, sampled, strict=True):
        assert torch.equal(drawn.codes, result.codes)
        assert furthest(drawn.image.tobytes(), result.image.tobytes()) <= 1  # decoded in a batch of another size


def test_a_pack_with_a_flow_alone_starts_from_what_its_flow_draws(tmp_path: Path) -> None:
    about = write_micro_pack(tmp_path / "pack", flow=micro_flow()) / "pack.json"
    info = json.loads(about.read_text())
    del info["members"]["transformer"]
    about.write_text(json.dumps(info))
    brush = Codebrush.from_pretrained(tmp_path / "pack", device="cpu")
    drawn = brush.generate("a dog", n=2, seed=6, rerank=4)
    assert drawn[0].manifest["method"] == "flow"
    folder = tmp_path / "run"
    run = finish(brush.guide("a dog", n=2, seed=6, sampling={"rerank": 4}, steps=0, folder=folder))
    assert run.request.options.init == "sample"
    assert [torch.equal(one.codes, other.codes) for one, other in zip(run.results, drawn, strict=True)] == [True, True]
    again = brush.replay(read_manifest(folder / "picture_01.png"))
    assert again.image.tobytes() == run.results[1].image.tobytes()
    with pytest.raises(UsageError, match="temperature is for drawing codes"):
        brush.guide("a dog", sampling={"temperature": 0.5})


def test_a_step_shows_its_picture_when_asked(brush: Codebrush) -> None:
    for step in brush.guide("a dog", n=2, batch_size=2, size="48x32", **QUICK):
        assert step.images().shape == (2, 3, 32, 48)
        assert 0 <= float(step.images().min()) <= float(step.images().max()) <= 1
        assert step.latent()[1].shape == (2, 8, 12)
        assert step.shown == (step.step % 2 == 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": ""}, PromptError, "empty"),
        ({"steps": -1}, UsageError, "steps must be a whole number from 0"),
        ({"size": "33x32"}, UsageError, "multiples of 4"),
        ({"size": "big"}, UsageError, "size must be"),
        ({"init": "nowhere.png"}, UsageError, "init must be one of random.*or a file"),
        ({"mask": "nowhere.png"}, ImageError, "nowhere.png: cannot be read"),
        ({"other_clip": "nowhere"}, PackError, "nowhere"),
        ({"judge": "nowhere"}, PackError, "nowhere"),
        ({"other_clip": "emoji:1:0.5"}, UsageError, "other_clip takes no stop: write emoji:1"),
        ({"max_memory": "0"}, UsageError, "max_memory must be a size"),
        ({"max_memory": "9" * 400}, UsageError, "max_memory must be a size"),
        ({"own_clip_weight": 0.0}, UsageError, "no CLIP is left"),
        ({"sampling": {"cfg": 3}}, UsageError, "cfg is for drawing codes"),
        ({"preset": "nothing"}, UsageError, "preset must be one of sample, random, notebook, refine"),
        ({"wings": 2}, UsageError, "no option wings"),
        ({"optimizer": "LBFGS"}, UsageError, "optimizer must be one of"),
        ({"n": 0}, UsageError, "n must be"),
    ],
)
def test_bad_input_is_one_line(
    brush: Codebrush, options: dict[str, Any], error: type[CodebrushError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        finish(brush.guide(**{"prompt": "a dog", **QUICK, **options}))
    assert "\n" not in str(caught.value)
