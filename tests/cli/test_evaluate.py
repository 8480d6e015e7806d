"""`codebrush evaluate` on drawn scenes and a pack with random weights, compared with the functions that it calls."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import stack
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import ImageError
from codebrush.evaluation.alignment import clip_score, cross_retrieval, r_precision, zero_shot
from codebrush.evaluation.calibration import calibrate
from codebrush.evaluation.tables import ROWS
from codebrush.understanding.classification import label_embeddings
from figures import reconstruction
from packs import micro_flow, write_micro_pack

pytest.importorskip("torchmetrics")
KINDS = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of three labels, one row whose picture is missing, and one of another split."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for index in range(13):
        drawn = scene(3, index, 32)
        drawn.image.save(folder / f"{index}.png")
        split = "test" if index < 12 else "train"
        kind = KINDS[index % 3]
        rows.append({"file_name": f"{index}.png", "label": kind, "caption": f"{kind} {index}", "split": split})
    rows.append({"file_name": "none.png", "label": "circle", "caption": "re:zero | nothing", "split": "test"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def report(micro_pack: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("reports") / "report.md"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[dict] = []
        patch.setattr("codebrush.cli.evaluate.print_json", printed.append)
        assert run(["evaluate", str(micro_pack), str(source), "--prompts", "20", "--out", str(out), "--json"]) == 0
    return {**printed[0], "markdown": out.read_text(encoding="utf-8")}


def test_the_report_has_every_figure_and_the_missing_picture(report: dict) -> None:
    assert report["pictures"] == 12
    assert [each["path"] for each in report["skipped"]] == ["none.png"]
    assert report["left_out"] == {}
    assert set(report["reconstruction"]) == {
        *("psnr", "ssim", "perceptual", "rfid", "kid", "kid_std", "kid_subset"),
        *("codebook_usage", "codebook_perplexity", "features"),
    }
    assert report["judge"]["clip"] == "micro, the pack's own"
    assert json.loads(json.dumps(report, allow_nan=False))


def test_photos_over_the_limit_are_measured_at_a_reduced_size(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for name, size, grey in (("phone", (12_000, 9_000), 90), ("same", (120, 90), 90), ("other", (120, 90), 250)):
        Image.new("L", size, grey).save(tmp_path / f"{name}.jpg", quality=30)
        rows.append({"file_name": f"{name}.jpg", "label": "dark" if grey == 90 else "light", "caption": name})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["evaluate", str(micro_pack), str(tmp_path), "--leave-out", "drawing", "--json"]
    assert run(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pictures"], report["skipped"]) == (3, [])
    source = open_source(str(tmp_path))
    large, small = source.image(0, wanted=32), source.image(1, wanted=32)
    assert (large.size, small.size) == ((1500, 1125), (120, 90))
    assert large.getpixel((700, 500)) == small.getpixel((60, 40))
    with pytest.raises(ImageError, match=r"^phone\.jpg: 12000 x 9000 is over the limit"):
        source.image(0)


def test_figures_are_those_of_their_parts(report: dict, micro_pack: Path, source: Path) -> None:
    brush, rows = Codebrush.from_pretrained(micro_pack), open_source(source, split="test", limit=12)
    pictures = [rows.image(row) for row in range(12)]
    images, labels = brush.embed_images(pictures), [rows.row(row)["label"] for row in range(12)]
    vectors = label_embeddings(brush.clip, brush.tokenizer, sorted(KINDS))
    found = report["zero_shot"]
    for name, value in zero_shot(images, sorted(KINDS), vectors, labels).items():
        assert found[name] == pytest.approx(value)
    captions = [rows.captions(row)[0] for row in range(12)]
    texts = list(dict.fromkeys(captions))
    owners = [[texts.index(caption)] for caption in captions]
    assert report["retrieval"] == cross_retrieval(images, brush.embed_text(texts), owners)
    for name, value in reconstruction(brush.vqgan, [stack(pictures, 32)]).items():
        assert report["reconstruction"][name] == pytest.approx(value, rel=1e-4)
    calibration = found["calibration"]
    assert calibration["pictures"] == 6
    logits = brush.clip.log_scale.exp().item() * images @ vectors.T
    fitted = calibrate(logits, torch.tensor([sorted(KINDS).index(label) for label in labels]))
    assert calibration["temperature"] == pytest.approx(fitted.temperature, rel=1e-4)


def test_captions_are_drawn_literally(report: dict, micro_pack: Path, source: Path) -> None:
    """Also a caption that would be a prompt of several weighted parts."""
    brush, rows = Codebrush.from_pretrained(micro_pack), open_source(source, split="test")
    captions = list(dict.fromkeys(rows.captions(row)[0] for row in range(len(rows))))
    assert "re:zero | nothing" in captions
    prompts = [caption.replace(":", r"\:").replace("|", r"\|") for caption in captions]
    images = brush.embed_images([brush.generate(prompt, n=1, seed=0, rerank=1)[0].image for prompt in prompts])
    texts, own = brush.embed_text(captions), range(len(captions))
    drawing = report["drawing"]
    assert (drawing["prompts"], drawing["captions"], drawing["refused"]) == (13, 13, [])
    assert drawing["r_precision"] == r_precision(images, own, texts)["r_precision"]
    expected = clip_score(images, texts, [[place] for place in own])
    assert drawing["clip_score"]["mean_cosine"] == pytest.approx(expected["mean_cosine"], abs=1e-6)


def test_the_table_has_the_same_figures(report: dict) -> None:
    table = report["markdown"]
    assert f"| PSNR (dB) | {report['reconstruction']['psnr']:.2f} |" in table
    assert f"| text to image recall@5 | {report['retrieval']['text_to_image']['recall_at_5']:.1%} |" in table
    assert "12 pictures." in table
    assert "1 picture could not be read, none.png first" in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(ROWS)
    assert all(line.count("|") == 3 for line in rows)


def test_parts_can_be_left_out_and_another_judge_used(
    micro_pack: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_micro_pack(tmp_path / "other", seed=4)
    options = [
        option for part in ("zero-shot", "retrieval", "clip-score", "drawing") for option in ("--leave-out", part)
    ]
    arguments = ["evaluate", str(micro_pack), str(source), *options, "--limit", "5"]
    assert run([*arguments, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["left_out"] == dict.fromkeys(("zero-shot", "retrieval", "clip-score", "drawing"), "not asked for")
    assert "zero_shot" not in own
    assert own["pictures"] == 5
    assert run([*arguments, "--judge", str(other), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["judge"]["clip"] == str(other)
    assert judged["reconstruction"]["psnr"] == own["reconstruction"]["psnr"]
    assert judged["reconstruction"]["perceptual"] != own["reconstruction"]["perceptual"]


def test_drawing_alone_reports_what_was_drawn_and_reads_no_picture(
    micro_pack: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("zero-shot", "retrieval", "clip-score", "reconstruction")
    options = [*(f"--leave-out={part}" for part in parts), "--prompts", "3", "--out", str(tmp_path / "report.md")]
    assert run(["evaluate", str(micro_pack), str(source), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] is None
    assert (report["drawing"]["prompts"], report["drawing"]["captions"]) == (3, 13)
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "3 of 13 captions were drawn; the pictures were not read." in table
    assert "0 pictures" not in table
    without = write_micro_pack(tmp_path / "pack")
    info = json.loads((without / "pack.json").read_text())
    del info["members"]["transformer"]
    (without / "pack.json").write_text(json.dumps(info))
    assert run(["evaluate", str(without), str(source), *options]) == 0
    assert "\nNothing was measured.\n" in capsys.readouterr().out


def test_a_pack_with_a_flow_alone_draws_by_flow(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = write_micro_pack(tmp_path / "pack", flow=micro_flow())
    info = json.loads((pack / "pack.json").read_text())
    del info["members"]["transformer"]
    (pack / "pack.json").write_text(json.dumps(info))
    options = [f"--leave-out={part}" for part in ("zero-shot", "retrieval", "clip-score", "reconstruction")]
    assert run(["evaluate", str(pack), str(source), "--prompts", "2", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["drawing"]["prompts"] == 2
    assert "drawing" not in report["left_out"]


def test_the_fitted_temperature_works_in_the_pack_as_the_report_says(
    report: dict, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = report["zero_shot"]["calibration"]
    entry = calibration["pack_json"]
    temperature = entry["classification"]["temperature"]
    assert temperature == pytest.approx(calibration["temperature"], abs=1e-4)
    holds = f'"classification": {{"temperature": {temperature}}}'
    assert f"the fitted temperature is {temperature}: " in report["markdown"]
    assert f"uses it if the pack's pack.json holds {holds}, or with --temperature {temperature}\n" in report["markdown"]
    pack = write_micro_pack(tmp_path / "pack")
    info = json.loads((pack / "pack.json").read_text())
    (pack / "pack.json").write_text(json.dumps({**info, **entry}))
    assert run(["classify", str(source / "0.png"), "--labels", "a,b", "--pack", str(pack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == temperature
    options = [f"--leave-out={part}" for part in ("retrieval", "clip-score", "reconstruction", "drawing")]
    assert run(["evaluate", str(pack), str(source), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["zero_shot"]["temperature"] == temperature


def test_parts_that_cannot_be_measured_are_reported_and_the_rest_is_measured(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = write_micro_pack(tmp_path / "pack")
    info = json.loads((pack / "pack.json").read_text())
    del info["members"]["transformer"]
    (pack / "pack.json").write_text(json.dumps(info))
    arguments = ["evaluate", str(pack), str(source), "--limit", "2", "--split", "test", "--where", "label != circle"]
    assert run(arguments) == 0
    table = capsys.readouterr().out
    assert "left out: distances: 2 pictures are too few to compare as a set" in table
    assert "left out: drawing: the pack has no code or flow transformer" in table
    assert "PSNR" in table


def test_at_most_one_batch_of_pictures_is_encoded_at_once(
    micro_pack: Path, source: Path, report: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    encode = torch.nn.Module.__call__
    monkeypatch.setattr("codebrush.evaluation.rows.BATCH", 5)

    def watched(module: torch.nn.Module, *values, **named):
        if type(module).__name__ == "Encoder":
            seen.append(len(values[0]))
        return encode(module, *values, **named)

    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    assert run(["evaluate", str(micro_pack), str(source), "--leave-out", "drawing", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert max(seen) == 5
    assert found["reconstruction"]["rfid"] == pytest.approx(report["reconstruction"]["rfid"], abs=1e-4)
    assert found["reconstruction"]["codebook_perplexity"] == pytest.approx(
        report["reconstruction"]["codebook_perplexity"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--label", "kind"], 1, "no column kind with labels"),
        (["--split", "nine"], 1, "no split nine"),
        (["--template", "a photo"], 2, "must hold {} once"),
        (["--out", "."], 2, "must be a file"),
        (["--leave-out=drawing", "--prompts", "3"], 2, "--prompts is only for drawing, which --leave-out leaves out"),
        (["--leave-out=drawing", "--rerank", "2"], 2, "--rerank is only for drawing"),
        (["--leave-out=drawing", "--seed", "0"], 2, "--seed is only for drawing"),
        (["--leave-out=zero-shot", "--label", "label"], 2, "--label is only for zero-shot"),
        (["--leave-out=zero-shot", "--template", "a {}"], 2, "--template is only for zero-shot"),
        (
            ["--leave-out=reconstruction", "--leave-out=drawing", "--judge", "emoji"],
            2,
            "--judge is only for reconstruction and drawing",
        ),
        (
            [f"--leave-out={part}" for part in ("zero-shot", "retrieval", "clip-score", "reconstruction", "drawing")],
            2,
            "everything is left out by --leave-out: keep at least one part",
        ),
    ],
)
def test_misuse_is_one_line(
    micro_pack: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    complaint: str,
) -> None:
    assert run(["evaluate", str(micro_pack), str(source), *arguments]) == status
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_all_rows_of_a_source_without_splits_are_measured(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        scene(3, index, 32).image.save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"scene {index}\n")
    options = [f"--leave-out={part}" for part in ("zero-shot", "reconstruction", "drawing")]
    arguments = ["evaluate", str(micro_pack), str(tmp_path), *options]
    assert run([*arguments, "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["pictures"], report["split"]) == (3, None)
    assert output.err == f"codebrush: {tmp_path} has no splits: all its rows are used\n"
    assert run([*arguments, "--split", "test"]) == 1
    assert "so there is no test: leave out --split to use all its rows" in capsys.readouterr().err
    assert run(["evaluate", "no such pack", str(tmp_path), "--template", "a photo"]) == 2
    assert "must hold {} once" in capsys.readouterr().err
