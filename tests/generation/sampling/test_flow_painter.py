"""The method flow on a pack with random weights: its pictures, what they say about themselves, and their replay."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageStat

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.data.decoding.images import read_manifest
from codebrush.errors import ImageError, PackError, UsageError
from codebrush.generation.options import FlowSettings
from codebrush.generation.result import Result
from codebrush.generation.sampling import painters
from codebrush.generation.sampling.drawing import Drawing, Known
from codebrush.generation.sampling.flow import draw_latents, picture_noise
from codebrush.generation.sampling.painters import usual_painter
from codebrush.generation.sampling.sampler import BATCH, draw_options
from codebrush.models.bank import Bank, BankConfig
from codebrush.models.condition import Condition
from codebrush.models.precision import has_bf16
from codebrush.models.prior import Prior, PriorConfig
from codebrush.pack.pack import Pack, encode_condition
from codebrush.progress import Preview
from packs import micro_flow, micro_transformer, write_micro_pack

STEPS = 4
FLOW = ("--method", "flow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    bank = Bank(BankConfig(24, tuple(f"{number}.png" for number in range(30))))
    with torch.no_grad():
        bank.embeddings.copy_(F.normalize(torch.randn(30, 24), dim=-1))
    members = {"bank": bank, "prior": Prior(PriorConfig(24, 32)), "flow": micro_flow(image_embedding=24, source=True)}
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "flowing", **members)


@pytest.fixture(scope="module")
def brush(folder: Path) -> Codebrush:
    return Codebrush.from_pretrained(folder, device="cpu", weights="float32")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Codebrush:
    """Draws in bfloat16 where that is faster."""
    return Codebrush.from_pretrained(folder, device="cpu")


def drawn(brush: Codebrush, n: int = 2, **options: Any) -> list[Result]:
    return brush.generate(
        "a red circle", **{"n": n, "seed": 5, "method": "flow", "steps": STEPS, "rerank": n, **options}
    )


def pixels(results: list[Result]) -> list[bytes]:
    return [result.image.tobytes() for result in results]


@torch.no_grad()
def test_codes_are_the_nearest_to_what_the_flow_ends_at(brush: Codebrush) -> None:
    results = sorted(drawn(brush, 3, cfg=2.0), key=lambda result: result.manifest["index"])
    flow, vqgan = brush.flow_sampler.painter.flow, brush.vqgan  # pyright: ignore[reportAttributeAccessIssue]
    condition = encode_condition(brush.clip, brush.tokenizer, ["a red circle"], flow.config)
    latents = draw_latents(flow, condition, picture_noise(5, range(3), (8, 8, 8)), FlowSettings(STEPS), 2.0)
    codes = torch.einsum(
        "bdhw,kd->bhwk", F.normalize(latents, dim=1), F.normalize(vqgan.quantizer.vectors, dim=1)
    ).argmax(-1)
    assert torch.equal(torch.stack([result.codes for result in results]), codes)
    assert len({tuple(each.flatten().tolist()) for each in codes}) == 3


def test_the_manifest_says_how_it_was_drawn(brush: Codebrush) -> None:
    (result,) = drawn(brush, 1, sampler="heun", cfg_interval=(0.1, 0.8), cfg=4, rerank=2)
    assert result.manifest["method"] == "flow"
    assert result.manifest["options"] == {
        "n": 1,
        "cfg": 4.0,
        "rerank": 2,
        "flow": {"steps": STEPS, "sampler": "heun", "cfg_interval": (0.1, 0.8)},
    }
    assert "retrieval" not in result.manifest


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "dpm", "cfg": 1},
        {"cfg_interval": (0.2, 0.9)},
        {"size": "40x48"},
        {"prior": "retrieval", "neighbours": 2},
        {"prior": "mlp"},
    ],
)
def test_a_replay_has_the_same_pixels(brush: Codebrush, options: dict[str, Any]) -> None:
    for result in drawn(brush, 2, rerank=3, **options):
        again = brush.replay(json.loads(json.dumps(result.manifest)))
        assert again.image.tobytes() == result.image.tobytes()
        assert json.dumps(again.manifest) == json.dumps(result.manifest)


needs_bf16 = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="bfloat16 is not faster here")


@needs_bf16
def test_bfloat16_draws_nearly_the_same_codes_and_says_so(brush: Codebrush, fast: Codebrush) -> None:
    exact, near = (sorted(drawn(each, 8, cfg=3), key=lambda one: one.manifest["index"]) for each in (brush, fast))
    same = torch.stack([one.codes == other.codes for one, other in zip(exact, near, strict=True)]).float().mean()
    assert 0.9 < same < 1
    assert near[0].manifest["options"]["weights"] == "bf16"
    assert "weights" not in exact[0].manifest["options"]
    latents = [torch.stack([result.latent for result in each]) for each in (exact, near)]
    assert F.cosine_similarity(*latents, dim=-3).mean() > 0.95


@needs_bf16
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_picture_in_bfloat16_has_the_same_bits_however_many_are_drawn(fast: Codebrush, n: int) -> None:
    many = {result.manifest["index"]: result.codes for result in drawn(fast, 9, cfg=3)}
    for result in drawn(fast, n, cfg=3):
        assert torch.equal(result.codes, many[result.manifest["index"]])


@pytest.mark.parametrize("weights", ["auto", "int8", "float32"])
def test_a_pack_opened_with_other_weights_replays_what_each_drew(folder: Path, fast: Codebrush, weights: str) -> None:
    (result,) = drawn(Codebrush.from_pretrained(folder, device="cpu", weights=weights), 1, rerank=2)
    assert fast.replay(result.manifest).image.tobytes() == result.image.tobytes()
    bits = has_bf16(torch.device("cpu")) and weights != "float32"
    assert result.manifest["options"].get("weights") == ("bf16" if bits else None)


def test_where_bfloat16_is_not_faster_its_pictures_replay_in_float32(
    brush: Codebrush, fast: Codebrush, monkeypatch: pytest.MonkeyPatch
) -> None:
    (exact,) = drawn(brush, 1)
    monkeypatch.setattr(painters, "has_bf16", lambda device: False)
    manifest = {**exact.manifest, "options": {**exact.manifest["options"], "weights": "bf16"}}
    assert fast.replay(manifest).image.tobytes() == exact.image.tobytes()


def test_pictures_are_shown_while_they_are_drawn(brush: Codebrush) -> None:
    shown: list[tuple[int, list[Image.Image]]] = []
    preview = Preview(3, lambda number, pictures: shown.append((number, pictures)))
    options: dict[str, Any] = {"n": 2, "rerank": 5, "method": "flow", "steps": 8, "size": "48x40"}
    prompts, seeds = ["a red circle", "a dog"], [4, 5]
    plain = [brush.generate(one, seed=seed, **options) for one, seed in zip(prompts, seeds, strict=True)]
    made = brush.generate(prompts, seed=seeds, preview=preview, **options)
    assert list(map(pixels, made)) == list(map(pixels, plain))
    assert [number for number, _ in shown] == [0] * 3 + [1] * 3
    assert {picture.size for _, pictures in shown for picture in pictures} == {(48, 40)}
    assert {len(pictures) for _, pictures in shown} == {2}
    assert len(set(map(Image.Image.tobytes, (pictures[0] for _, pictures in shown)))) == 6
    last = brush.generate("a dog", seed=5, **{**options, "n": 5})
    first = min(last, key=lambda result: result.manifest["index"])
    closeness = [_apart(pictures[0], first.image) for number, pictures in shown if number == 1]
    assert closeness[-1] == min(closeness)


def _apart(one: Image.Image, other: Image.Image) -> float:
    return ImageStat.Stat(ImageChops.difference(one, other)).rms[0]


def test_an_edit_is_shown_with_what_is_kept(brush: Codebrush) -> None:
    shown: list[Image.Image] = []
    preview = Preview(2, lambda _, pictures: shown.extend(pictures))
    photo = Image.effect_noise((32, 32), 80).convert("RGB")
    given: dict[str, Any] = {"box": (8, 8, 24, 24), "n": 1, "rerank": 2, "seed": 3, "method": "flow", "steps": 6}
    plain = brush.edit(photo, "a dog", **given)
    assert pixels(brush.edit(photo, "a dog", preview=preview, **given)) == pixels(plain)
    assert len(shown) == 2
    outside = [(0, 0, 32, 6), (0, 0, 6, 32)]
    assert all(each.crop(box).tobytes() == photo.crop(box).tobytes() for each in shown for box in outside)
    assert len({each.tobytes() for each in shown}) == 2


def test_every_option_changes_the_picture(brush: Codebrush) -> None:
    plain = pixels(drawn(brush))
    changes = [
        {"steps": 5},
        {"sampler": "heun"},
        {"sampler": "euler"},
        {"cfg": 1},
        {"cfg_interval": (0.3, 0.6)},
        {"prior": "mlp"},
        {"seed": 6},
    ]
    assert all(pixels(drawn(brush, **change)) != plain for change in changes)
    assert pixels(drawn(brush)) == plain
    assert pixels(drawn(brush, sampler="dpm", cfg_interval=(0, 1))) == plain


def test_a_picture_does_not_depend_on_how_many_are_drawn(brush: Codebrush) -> None:
    many = {result.manifest["index"]: result.codes for result in drawn(brush, BATCH + 2, steps=2)}
    assert len(many) == BATCH + 2
    for result in drawn(brush, 2, steps=2):
        assert torch.equal(result.codes, many[result.manifest["index"]])


def test_other_sizes_are_drawn(brush: Codebrush) -> None:
    with pytest.warns(UserWarning, match="48x24 is larger than the 32x32 that the flow was trained on"):
        (result,) = drawn(brush, 1, size="48x24")
    assert (result.image.size, result.codes.shape) == ((48, 24), (6, 12))
    with pytest.raises(UsageError, match="a picture of 36x32 has no whole codes: use multiples of 8"):
        drawn(brush, 1, size="36x32")


def test_unclip_draws_from_a_picture_of_the_bank(brush: Codebrush) -> None:
    (result,) = drawn(brush, 1, prior="retrieval", neighbours=1)
    (found,) = result.manifest["retrieval"]["found"]
    bank = brush.pack.bank
    embedding = bank.embeddings[bank.config.names.index(found["name"])][None]
    condition = encode_condition(brush.clip, brush.tokenizer, ["a red circle"], brush.flow_sampler.painter.config)
    condition = replace(condition, image_embedding=embedding)
    options = draw_options(brush.pack, {"n": 1, "seed": 5, "rerank": 1, "flow": FlowSettings(STEPS)})
    same = brush.flow_sampler.draw(Drawing("", options, [(condition, 1.0)], embedding, [1.0]), range(1), None)
    assert torch.equal(same[0].codes, result.codes)


def test_retrieval_draws_by_the_flow_of_a_pack_that_draws_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "own")
    info = json.loads((folder / "pack.json").read_text())
    (tmp_path / "own" / "pack.json").write_text(json.dumps({**info, "painter": "flow"}))
    brush = Codebrush.from_pretrained(tmp_path / "own", device="cpu", weights="float32")
    for options in ({}, {"neighbours": 2}, {"prior": "mlp"}):
        found = drawn(brush, method="retrieve", **options)
        assert found[0].manifest["method"] == "flow"
        assert pixels(found) == pixels(drawn(brush, **{"prior": "retrieval", **options}))
        assert brush.replay(found[0].manifest).image.tobytes() == found[0].image.tobytes()


def test_known_codes_are_kept_and_seen(brush: Codebrush) -> None:
    codes = torch.randint(128, (1, 8, 8))
    fixed = torch.zeros(1, 8, 8, dtype=torch.bool)
    fixed[:, :, :3] = True
    options = draw_options(brush.pack, {"n": 1, "seed": 5, "rerank": 1, "flow": FlowSettings(STEPS, "euler")})
    text = brush.embed_text(["a red circle"])

    def codes_drawn(kept: torch.Tensor, **source: Any) -> torch.Tensor:
        drawing = Drawing("", options, [(Condition(**source), 1.0)], text, [1.0], known=Known(kept, fixed))
        return brush.flow_sampler.draw(drawing, range(2), None)[1].codes

    first, other = codes_drawn(codes), codes_drawn((codes + 7) % 128)
    assert torch.equal(first[:, :3], codes[0, :, :3])
    assert not torch.equal(first[:, 3:], other[:, 3:])
    seen = codes_drawn(codes, source_codes=codes, source_mask=fixed)
    assert not torch.equal(seen[:, 3:], first[:, 3:])  # the network reads the source beside the known part


def test_the_command_line_draws_and_replays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--pack", str(folder), "--out", str(tmp_path), "--json"]
    flags = [
        "--method",
        "flow",
        "--steps",
        "3",
        "--sampler",
        "dpm",
        "--cfg-interval",
        "0.1,0.9",
        "--n",
        "1",
        "--rerank",
        "1",
    ]
    assert run(["generate", "a dog", *flags, *common]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    options = read_manifest(Path(image["path"]))["options"]
    assert options["flow"] == {"steps": 3, "sampler": "dpm", "cfg_interval": [0.1, 0.9]}
    assert run(["replay", image["path"], "--out", str(tmp_path / "again.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["identical"] is True


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--sampler", "heun"], "--sampler is an option of the flow: add --method flow"),
        (["--cfg-interval", "0,1"], "--cfg-interval is an option of the flow: add --method flow"),
        (["--steps", "5"], "steps is for the methods flow and guide, and for masked code transformers: leave it out"),
        ([*FLOW, "--cutouts", "4"], "--cutouts is an option of guidance: add --clip-guidance"),
        ([*FLOW, "--temperature", "0.5"], "temperature is for drawing codes: leave it out, or use the method sample"),
        ([*FLOW, "--cfg-interval", "1"], "--cfg-interval must be two numbers with ',' between, not 1"),
        ([*FLOW, "--cfg-interval", "1,0"], "cfg_interval must be two rising times from 0 to 1, not 1.0,0.0"),
        ([*FLOW, "--steps", "0"], "steps must be a whole number from 1 to 1000, not 0"),
    ],
)
def test_flags_without_effect_are_refused(
    folder: Path, flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a dog", "--pack", str(folder), *flags]) == 2
    assert capsys.readouterr().err == f"codebrush: {line}\n"


def test_a_pack_without_a_code_transformer_says_what_it_draws_by(tmp_path: Path) -> None:
    folder = write_micro_pack(tmp_path / "pack", flow=micro_flow())
    shutil.rmtree(folder / "transformer")
    info = json.loads((folder / "pack.json").read_text())
    del info["members"]["transformer"]
    (folder / "pack.json").write_text(json.dumps(info))
    brush = Codebrush.from_pretrained(folder)
    with pytest.raises(PackError, match="has no code transformer: it draws by its flow transformer, for which the m"):
        brush.generate("a dog", method="sample")
    with pytest.raises(UsageError, match=r"temperature is for drawing codes: leave it out$"):
        drawn(brush, temperature=0.5)


def test_packs_that_cannot_are_told(micro_pack: Path, folder: Path, brush: Codebrush, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="has no flow transformer: train one with codebrush train flow"):
        drawn(Codebrush.from_pretrained(micro_pack))
    bare = write_micro_pack(tmp_path / "bare", flow=micro_flow())
    with pytest.raises(
        PackError, match="this pack's flow transformer takes no image embedding: train one with image_share"
    ):
        drawn(Codebrush.from_pretrained(bare), prior="none")
    manifest = drawn(brush, 1)[0].manifest
    with pytest.raises(PackError, match="made with the pack"):
        Codebrush.from_pretrained(bare).replay(manifest)
    damaged = {**manifest, "options": {**manifest["options"], "flow": {"steps": -1}}}
    with pytest.raises(ImageError, match="damaged"):
        brush.replay(damaged)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"latent_channels": 4}, "flow draws latents of 4 numbers, but the VQGAN's have 8"),
        ({"grid": (4, 4)}, "flow draws a grid of 4 x 4 codes, but the VQGAN has 4 x 4 pixels a code"),
        ({"unit_latents": False}, "flow draws latents that are of any length, but the VQGAN's are unit vectors"),
    ],
)
def test_a_flow_that_does_not_fit_the_pack_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    pack = tmp_path / "changed"
    shutil.copytree(folder, pack)
    shutil.rmtree(pack / "flow")
    changed = micro_flow(**{"image_embedding": 24, "source": True, **change})
    changed.save_pretrained(pack / "flow")
    with pytest.raises(PackError, match=line):
        Codebrush.from_pretrained(pack)


def test_pack_json_names_the_usual_painter(tmp_path: Path) -> None:
    both = {"transformer": micro_transformer(source_codes=True), "flow": micro_flow()}
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    for name, given, wanted in (("unnamed", {}, "sample"), ("codes", {"painter": "sample"}, "sample"),
                                ("flow", {"painter": "flow"}, "flow")):  # fmt: skip
        pack = write_micro_pack(tmp_path / name, **both, **given)
        assert json.loads((pack / "pack.json").read_text())["painter"] == wanted
        brush = Codebrush.from_pretrained(pack, device="cpu")
        other = "flow" if wanted == "sample" else "sample"
        assert brush.generate("a dog", n=1, rerank=1)[0].manifest["method"] == wanted
        assert brush.generate("a dog", n=1, rerank=1, method=other)[0].manifest["method"] == other
        edited = brush.edit(picture, "a dog", n=1, rerank=1)[0].manifest["options"]
        assert ("flow" in edited) is (wanted == "flow")
    info = json.loads((pack / "pack.json").read_text())
    del info["painter"]  # as in packs of earlier versions
    (pack / "pack.json").write_text(json.dumps(info))
    assert usual_painter(Pack(pack)) == "sample"


def test_a_pack_with_a_flow_alone_draws_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    pack = write_micro_pack(tmp_path / "both", transformer=micro_transformer(), flow=micro_flow())
    shutil.rmtree(pack / "transformer")
    info = json.loads((pack / "pack.json").read_text())
    del info["members"]["transformer"]
    (pack / "pack.json").write_text(json.dumps(info))
    brush = Codebrush.from_pretrained(pack)
    asked, own = drawn(brush), drawn(brush, method=None)
    assert pixels(own) == pixels(asked)
    assert own[0].manifest == asked[0].manifest
    assert own[0].manifest["method"] == "flow"
    assert [pixels(each) for each in brush.generate(["a red circle"], 2, 5, steps=STEPS, rerank=2)] == [pixels(asked)]
    with pytest.raises(PackError, match="has no code transformer"):
        brush.generate("a dog", n=1, method="sample")
    common = ["--pack", str(pack), "--out", str(tmp_path), "--json", "--n", "1", "--rerank", "1"]
    assert run(["generate", "a dog", "--steps", "3", "--sampler", "dpm", "--clip-guidance", "0", *common]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert read_manifest(Path(image["path"]))["options"]["flow"]["sampler"] == "dpm"
    assert run(["generate", "a dog", "--cutouts", "4", *common]) == 2
    assert capsys.readouterr().err == "codebrush: --cutouts is an option of guidance: add --clip-guidance\n"


def test_a_flow_draws_two_candidates_for_each_picture_and_a_code_transformer_four(brush: Codebrush) -> None:
    asked = {"n": 3, "seed": 0}
    assert draw_options(brush.pack, {**asked, "flow": FlowSettings()}).rerank == 6
    assert draw_options(brush.pack, asked).rerank == 12
    assert draw_options(brush.pack, {**asked, "flow": FlowSettings(), "rerank": 5}).rerank == 5
