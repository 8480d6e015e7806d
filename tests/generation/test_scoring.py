"""The pack's scorer: it ranks what is drawn, says what its scores mean, and changes nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from codebrush import Codebrush
from codebrush.errors import PackError
from codebrush.generation.scoring import Levels
from packs import micro_clip, write_micro_pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(77)
    folder = tmp_path_factory.mktemp("scored") / "pack"
    return write_micro_pack(folder, scorer=micro_clip(), extras={"scores": {"likely": 0.2, "unlikely": -0.1}})


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.3, "likely"), (0.2, "likely"), (0.1, "unsure"), (-0.1, "unsure"), (-0.2, "unlikely")]
)
def test_levels(score: float, verdict: str) -> None:
    assert Levels(0.2, -0.1).verdict(score) == verdict


@pytest.mark.parametrize("scores", [[1], {"likely": 1}, {"likely": 1, "unlikely": "low"}], ids=str)
def test_levels_that_are_no_numbers_are_refused(scores: Any) -> None:
    with pytest.raises(PackError, match="'scores' must hold the numbers likely and unlikely, not"):
        Levels.of_pack({"scores": scores})


def test_drawn_pictures_are_ranked_by_the_scorer(folder: Path) -> None:
    brush = Codebrush.from_pretrained(folder, device="cpu")
    results = brush.generate("a dog:2 | red:-1", n=6, rerank=6)
    assert brush.scorer is not None
    clip, tokenizer = brush.scorer.clip, brush.scorer.tokenizer
    dog, red = clip.encode_text(tokenizer(["a dog", "red"]))
    for result in results:
        pixels = torch.tensor(list(result.image.tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
        image = clip.encode_image(pixels)[0]
        expected = float(2 * image @ dog - image @ red) / 3
        assert result.judged == pytest.approx(expected, abs=1e-5)
        assert result.manifest["scorer"] == {"score": result.judged, "verdict": result.verdict}
        assert result.verdict == Levels(0.2, -0.1).verdict(expected)
        assert result.score == pytest.approx(result.manifest["clip_score"])
    judged = [result.judged for result in results]
    assert judged == sorted(judged, reverse=True) != sorted(judged)
    assert [result.score for result in results] != sorted((result.score for result in results), reverse=True)


def test_the_same_candidates_are_drawn_without_it(folder: Path, tmp_path: Path) -> None:
    info = json.loads((folder / "pack.json").read_text())
    plain = Codebrush.from_pretrained(folder, device="cpu").generate("a dog", n=4, rerank=4)
    del info["members"]["scorer"]
    for member in ("clip", "vqgan", "transformer"):
        (tmp_path / member).symlink_to(folder / member)
    (tmp_path / "pack.json").write_text(json.dumps(info))
    without = Codebrush.from_pretrained(tmp_path, device="cpu").generate("a dog", n=4, rerank=4)
    pictures = [{result.manifest["index"]: result.image.tobytes() for result in each} for each in (plain, without)]
    assert pictures[0] == pictures[1]
    assert all(result.judged is None and result.verdict is None for result in without)
    assert [result.rank for result in without] == [result.score for result in without]


def test_variations_are_not_judged_by_a_text(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(78)
    from packs import micro_transformer

    varied = write_micro_pack(tmp_path / "pack", scorer=micro_clip(), transformer=micro_transformer(image_embedding=24))
    brush = Codebrush.from_pretrained(varied, device="cpu")
    results = brush.vary(brush.generate("a dog", n=1)[0].image, n=2)
    assert [result.judged for result in results] == [None, None]
