"""Every task of a loaded pack, with random weights: its results, and that they can be repeated."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codebrush import Codebrush
from codebrush.data.decoding.images import resize_square, stack
from codebrush.data.decoding.transparency import flattened
from codebrush.errors import ImageError, PackError, PromptError, UsageError
from codebrush.generation.options import DEFAULTS
from codebrush.generation.result import Result
from codebrush.generation.sampling.sampler import BATCH
from codebrush.methods import METHODS, REPLAYS
from codebrush.models.layers.packed_linear import can_pack
from packs import micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def brush(micro_pack: Path) -> Codebrush:
    return Codebrush.from_pretrained(micro_pack, device="cpu")


@pytest.fixture(scope="module")
def results(brush: Codebrush) -> list[Result]:
    return brush.generate("a red circle", n=3, seed=5, rerank=8)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    left, right = Image.new("RGB", (48, 32), "orange"), Image.new("RGB", (32, 32), "navy")
    left.paste("green", (10, 5, 30, 25))
    return [left, right]


def pixels(results: list[Result]) -> list[bytes]:
    return [result.image.tobytes() for result in results]


def test_a_result_holds_what_it_says(brush: Codebrush, results: list[Result]) -> None:
    assert len(results) == 3
    assert [result.score for result in results] == sorted((r.score for r in results), reverse=True)
    for result in results:
        assert result.image.size == (32, 32)
        assert result.codes.shape == (8, 8)
        assert result.latent.shape == (8, 8, 8)
        again = brush.vqgan.decode_codes(result.codes[None])
        decoded = brush.vqgan.decode(result.latent[None])
        torch.testing.assert_close(decoded, again)
        assert brush.score(result.image, "a red circle") == pytest.approx(result.score, abs=1e-5)
    assert len(set(pixels(results))) == 3


def test_the_best_of_the_candidates_are_kept(brush: Codebrush, results: list[Result]) -> None:
    all_of_them = brush.generate("a red circle", n=8, seed=5, rerank=8)
    assert pixels(all_of_them[:3]) == pixels(results)
    assert sorted(result.manifest["index"] for result in all_of_them) == list(range(8))


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(brush: Codebrush, results: list[Result]) -> None:
    assert pixels(brush.generate("a red circle", n=3, seed=5, rerank=8)) == pixels(results)
    others = [brush.generate("a red circle", n=8, seed=seed, rerank=8) for seed in (4, 6)]
    assert not set(pixels(others[0])) & set(pixels(others[1]))
    assert not (set(pixels(others[0])) | set(pixels(others[1]))) & set(pixels(results))


def test_a_picture_does_not_depend_on_how_many_are_drawn(brush: Codebrush) -> None:
    many = brush.generate("a red circle", n=BATCH + 2, seed=5, rerank=BATCH + 2)
    few = brush.generate("a red circle", n=2, seed=5, rerank=2)
    codes = {result.manifest["index"]: result.codes for result in many}
    assert len(codes) == BATCH + 2
    for result in few:
        assert torch.equal(result.codes, codes[result.manifest["index"]])


def test_options_reach_the_drawing(brush: Codebrush) -> None:
    def drawn(**options: Any) -> set[bytes]:
        return set(pixels(brush.generate("a red circle", n=4, seed=1, rerank=4, **options)))

    plain = drawn()
    assert drawn(**DEFAULTS) == plain
    assert len(drawn(temperature=0)) == 1
    assert drawn(top_k=1) == drawn(min_p=1) == drawn(top_p=1e-9) == drawn(temperature=0)
    for other in ({"cfg": 1}, {"temperature": 2}, {"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.9}):
        assert drawn(**other) != plain


def test_the_weights_of_a_prompt_have_an_effect(brush: Codebrush) -> None:
    one, weighed = (brush.generate(prompt, n=1, rerank=1)[0] for prompt in ("a dog", "a dog | blurry:-0.5"))
    assert not torch.equal(one.codes, weighed.codes)
    dog, blurry = (brush.score(weighed.image, text) for text in ("a dog", "blurry"))
    assert weighed.score == pytest.approx((dog - 0.5 * blurry) / 1.5, abs=1e-5)


def test_progress_ends_at_the_end(brush: Codebrush) -> None:
    calls: list[tuple[int, int]] = []
    brush.generate("a dog", n=1, rerank=BATCH + 1, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == ((BATCH + 1) * 64, (BATCH + 1) * 64)


def test_a_packs_own_defaults_come_before_ours(tmp_path: Path) -> None:
    folder = write_micro_pack(tmp_path / "own", defaults={"cfg": 1.5, "top_k": 7})
    brush = Codebrush.from_pretrained(folder)
    options = brush.generate("a dog", n=1, rerank=1, top_k=9)[0].manifest["options"]
    assert options["cfg"] == 1.5
    assert options["top_k"] == 9
    assert options["temperature"] == DEFAULTS["temperature"]
    write_micro_pack(folder, defaults={"temperature": "warm"})
    with pytest.raises(PackError, match="own: among its defaults, temperature must be a number"):
        Codebrush.from_pretrained(folder).generate("a dog")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": " "}, PromptError, "empty"),
        ({"prompt": "a" * 10_000}, PromptError, "10,000 characters"),
        ({"prompt": "dog:big"}, PromptError, 'weight "big"'),
        ({"n": 0}, UsageError, "n must be a whole number from 1 to 1024, not 0"),
        ({"n": None}, UsageError, "n must be"),
        ({"seed": -1}, UsageError, "seed must be"),
        ({"top_p": 7}, UsageError, "top_p must be"),
        ({"temperature": float("nan")}, UsageError, "temperature must be"),
        ({"n": 5, "rerank": 4}, UsageError, "rerank must be .* which is 5, not 4"),
    ],
)
def test_bad_input_is_refused(brush: Codebrush, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        brush.generate(**{"prompt": "a dog", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bank": "db"}, "bank is an option of the methods flow and retrieve, not of sample"),
        ({"bank": "db", "method": "guide"}, "bank is an option of the methods flow and retrieve, not of guide"),
        ({"steps": 3}, "steps is for the methods flow and guide, and for masked code transformers: leave it out"),
        ({"preset": "notebook", "method": "retrieve"}, "preset is an option of the method guide, not of retrieve"),
        ({"temprature": 1.0}, "generate has no option temprature: did you mean temperature?"),
        ({"lerning_rate": 1.0, "method": "guide"}, "generate has no option lerning_rate: did you mean learning_rate?"),
        ({"zzz": 1}, "generate has no option zzz"),
        ({"method": "magic"}, "method must be one of sample, flow, retrieve, guide, not magic"),
    ],
)
def test_an_option_that_the_method_lacks_is_refused(brush: Codebrush, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        brush.generate("a dog", **options)
    assert str(caught.value) == message


def test_every_method_can_be_replayed() -> None:
    assert METHODS.keys() <= REPLAYS.keys()


def test_upscale_none_is_no_upscaling(brush: Codebrush, pictures: list[Image.Image]) -> None:
    plain, upscaled = (brush.generate("a dog", n=1, rerank=1, **more)[0] for more in ({}, {"upscale": None}))
    assert plain.image.tobytes() == upscaled.image.tobytes()
    assert plain.manifest == upscaled.manifest
    for asked in (2, True):
        with pytest.raises(PackError, match="has no upscaler"):
            brush.generate("a dog", n=1, rerank=1, upscale=asked)


def test_replay_gives_the_same_pixels(brush: Codebrush, results: list[Result]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in results:
            manifest = json.loads(json.dumps(result.manifest))
            again = brush.replay(manifest)
            assert again.image.tobytes() == result.image.tobytes()
            assert again.manifest == result.manifest
    late = brush.generate("a dog | cat:-0.2", n=BATCH + 3, seed=2, rerank=BATCH + 3, cfg=2.0)
    late = next(result for result in late if result.manifest["index"] == BATCH + 1)
    assert brush.replay(late.manifest).image.tobytes() == late.image.tobytes()


def test_replay_uses_as_many_threads_as_there_were(brush: Codebrush, results: list[Result]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert brush.replay(results[0].manifest).manifest["threads"] == before
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_replay_knows_its_pack(micro_pack: Path, tmp_path: Path, results: list[Result]) -> None:
    other = Codebrush.from_pretrained(write_micro_pack(tmp_path / "other", seed=1, name="other"))
    manifest = results[0].manifest
    with pytest.raises(PackError, match="open the one it was made with") as caught:
        other.replay(manifest)
    for pack in (manifest["pack"]["hash"], other.pack.hash, "micro", "other"):
        assert pack[:12] in str(caught.value)


def test_replay_warns_of_another_version(brush: Codebrush, results: list[Result]) -> None:
    manifest = copy.deepcopy(results[0].manifest)
    manifest["versions"]["torch"] = "1.0"
    with pytest.warns(UserWarning, match=r"may differ; it was made with torch 1\.0, now .*over versions of torch \("):
        brush.replay(manifest)
    manifest["versions"]["numpy"], manifest["device"] = "1.0", "cpu (other)"
    with pytest.warns(
        UserWarning, match=r"not promised over versions of torch and versions of numpy and machines \(docs/det"
    ):
        brush.replay(manifest)


@pytest.mark.parametrize(
    "damage",
    [
        {"method": "magic"},
        {"prompt": 3},
        {"prompt": ...},
        {"seed": "x"},
        {"options": {"n": 1}},
        {"options": [1]},
        {"options": None},
        {"index": 8},
        {"index": -1},
        {"threads": 10**9},
        {"threads": 0},
        {"pack": "emoji"},
        {"pack": None},
        {"versions": []},
    ],
)
def test_a_damaged_manifest_is_one_line(brush: Codebrush, results: list[Result], damage: dict[str, Any]) -> None:
    manifest = {key: value for key, value in {**results[0].manifest, **damage}.items() if value is not ...}
    with pytest.raises(ImageError, match=r"manifest is damaged|cannot be replayed") as caught:
        brush.replay(manifest)
    assert "\n" not in str(caught.value)


def test_embeddings_are_unit_vectors(brush: Codebrush, pictures: list[Image.Image], tmp_path: Path) -> None:
    texts = brush.embed_text(["a dog", "a cat: black", "|"])
    assert texts.shape == (3, 24)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(brush.embed_text("a dog"), texts[:1])
    path = tmp_path / "picture.png"
    pictures[0].save(path)
    images = brush.embed_images([*pictures, path, str(path)])
    assert images.dtype == torch.float32
    assert not images.requires_grad
    torch.testing.assert_close(images.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(images[2:], images[:1].expand(2, -1))
    assert brush.embed_text([]).shape == brush.embed_images([]).shape == (0, 24)
    many = brush.embed_images([pictures[0], pictures[1]] * BATCH)
    torch.testing.assert_close(many[-2:], images[:2], atol=1e-5, rtol=0)
    with pytest.raises(ImageError, match=r"nothing\.png"):
        brush.embed_images([tmp_path / "nothing.png"])


def test_reconstruction_goes_through_the_codes(brush: Codebrush, pictures: list[Image.Image]) -> None:
    first, second = brush.reconstruct(pictures)
    assert first.size == second.size == (32, 32)
    cut = brush.reconstruct([resize_square(pictures[0], 32)])[0]
    torch.testing.assert_close(stack([first], 32), stack([cut], 32), atol=0.005, rtol=0)
    codes = brush.vqgan.quantize(brush.vqgan.encode(stack([pictures[1]], 32)))[1]
    decoded = brush.vqgan.decode_codes(codes)[0].clamp(0, 1)
    torch.testing.assert_close(stack([second], 32)[0], decoded, atol=0.003, rtol=0)


def test_reconstruction_keeps_a_transparent_ground(brush: Codebrush) -> None:
    source = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    source.paste((200, 30, 30, 255), (16, 16, 32, 32))
    first, second = brush.reconstruct([source, source.convert("RGB")])
    assert (first.mode, second.mode) == ("RGBA", "RGB")
    drawn = stack(brush.reconstruct([flattened(source)]), 32)[0]
    pale = (drawn > 0.88).all(0)
    alpha = np.asarray(first.getchannel("A"))
    assert (alpha[:6][pale[:6].numpy()] == 0).all()
    assert (alpha[14:18, 14:18] == 255).all()


def test_classification_ranks_labels_by_their_mean_sentence(brush: Codebrush, pictures: list[Image.Image]) -> None:
    labels = ["dog", "cat", "a {brace}"]
    answers = brush.classify(pictures, labels)
    assert len(answers) == 2
    for answer in answers:
        assert {label for label, _ in answer} == set(labels)
        probabilities = [probability for _, probability in answer]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    for bad in ([], "dog"):
        with pytest.raises(UsageError, match="labels must be a list"):
            brush.classify(pictures, bad)


def test_an_unknown_device_is_refused(micro_pack: Path) -> None:
    for device in ("abacus", "cuda:99"):
        with pytest.raises(UsageError, match=f"device '{device}' cannot be used") as caught:
            Codebrush.from_pretrained(micro_pack, device=device)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["48x32", "32x48", "40x44"])
def test_a_larger_picture_is_drawn_through_a_window_and_replayed(brush: Codebrush, size: str) -> None:
    width, height = map(int, size.split("x"))
    (result,) = brush.generate("a red circle", n=1, rerank=2, seed=4, size=size)
    assert result.image.size == (width, height)
    assert result.codes.shape == (height // 4, width // 4)
    assert result.manifest["size"] == [width, height]
    again = brush.replay(json.loads(json.dumps(result.manifest)))
    assert again.image.tobytes() == result.image.tobytes()


def test_asking_for_the_packs_own_size_changes_nothing(brush: Codebrush) -> None:
    plain, sized = (brush.generate("a red circle", n=1, rerank=2, **more)[0] for more in ({}, {"size": "32x32"}))
    assert sized.image.tobytes() == plain.image.tobytes()


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("16x32", "16x32 is smaller than the pack's 32x32"),
        ("16", "16x16 is smaller than the pack's 32x32"),
        ("32x32x32", "size must be WIDTHxHEIGHT"),
        ("32.5", "size must be WIDTHxHEIGHT"),
        ("0", "from 1 to 65536 pixels a side, not 0"),
        ("32x65537", "from 1 to 65536 pixels a side, not 32x65537"),
        ("33x40", "a picture of 33x40 has no whole codes: use multiples of 4"),
        ("big", "size"),
        ("65536x65536", "is too large: ask for less"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused_before_a_model_loads(micro_pack: Path, size: str, said: str) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.raises(UsageError, match=said):
        brush.generate("a red circle", n=1, size=size)
    if "smaller" not in said:  # guidance draws smaller pictures, too
        with pytest.raises(UsageError, match=said):
            brush.guide("a red circle", size=size)
    assert not {"clip", "vqgan", "transformer"} & (set(vars(brush)) | set(vars(brush.pack)))


@pytest.mark.parametrize("size", ["64", 64])
def test_one_number_is_a_square(brush: Codebrush, size: Any) -> None:
    with pytest.warns(
        UserWarning, match="64x64 is drawn code by code through a window of 32x32, which takes about 54 times as long"
    ):
        (result,) = brush.generate("a red circle", n=1, rerank=1, size=size)
    assert result.image.size == (64, 64)
    assert result.manifest["options"]["size"] == "64x64"
    assert brush.guide("a red circle", size="40", steps=1, cutouts=1).request.options.size == "40"


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no such products")
@pytest.mark.parametrize("weights", ["float16", "int8"])
class TestStoredWeights:
    def test_pictures_say_how_they_were_drawn_and_replay_so(self, weights: str, micro_pack: Path) -> None:
        other = Codebrush.from_pretrained(micro_pack, device="cpu", weights=weights)
        drawn = other.generate("a red circle", n=2, seed=5, rerank=4)
        assert all(result.manifest["options"]["weights"] == weights for result in drawn)
        usual = Codebrush.from_pretrained(micro_pack, device="cpu")
        assert "weights" not in usual.generate("a red circle", n=1, rerank=1)[0].manifest["options"]
        again = usual.replay(drawn[1].manifest)
        assert torch.equal(again.codes, drawn[1].codes)
        assert again.manifest == drawn[1].manifest

    def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(self, weights: str, micro_pack: Path) -> None:
        other = Codebrush.from_pretrained(micro_pack, device="cpu", weights=weights)
        alone = [other.generate(prompt, n=2, seed=3, rerank=3) for prompt in ("a red circle", "a blue square")]
        together = other.generate(["a red circle", "a blue square"], n=2, seed=3, rerank=3)
        assert [pixels(results) for results in together] == [pixels(results) for results in alone]


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no such products")
def test_an_edit_asks_for_the_packs_weights(micro_pack: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    varied = write_micro_pack(tmp_path / "varied", transformer=micro_transformer(image_embedding=24))
    made = Codebrush.from_pretrained(varied, device="cpu", weights="int8").vary(pictures[0], n=1, rerank=1)
    assert made[0].manifest["options"]["weights"] == "int8"


def test_weights_that_cannot_be_had_are_refused(micro_pack: Path) -> None:
    with pytest.raises(UsageError, match="weights must be auto, float32, float16, int8, not float8"):
        Codebrush.from_pretrained(micro_pack, weights="float8")
    drawn = Codebrush.from_pretrained(micro_pack, device="cpu").generate("a red circle", n=1, rerank=1)[0].manifest
    with pytest.raises(ImageError, match="weights must be one of float32, float16, int8, not 5"):
        Codebrush.from_pretrained(micro_pack).replay({**drawn, "options": {**drawn["options"], "weights": 5}})


@pytest.mark.skipif(not can_pack(), reason="this build of PyTorch has no such products")
def test_large_networks_are_drawn_with_half_the_bits(micro_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Codebrush.from_pretrained(micro_pack, device="cpu").weights == "float32"
    monkeypatch.setattr("codebrush.loaded_pack.LARGE", 1000)
    assert Codebrush.from_pretrained(micro_pack, device="cpu").weights == "float16"
    assert Codebrush.from_pretrained(micro_pack, device="cpu", weights="float32").weights == "float32"
