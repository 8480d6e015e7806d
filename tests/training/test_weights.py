"""A column of weights says how often training shows each picture."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codebrush.errors import DataError, TrainingError
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.code_transformer import CodeTransformerTask, TransformerRecipe
from packs import micro_clip

LOOP = LoopConfig(steps=12, batch_size=2, warmup=1, threads=1, log_every=12, checkpoint_every=12, preview_every=0)


def pictures(folder: Path, weights: list[str], size: int = 16) -> Captioned:
    folder.mkdir()
    rows = []
    for number, weight in enumerate(weights):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,a thing,{weight}")
    (folder / "metadata.csv").write_text("\n".join(["file_name,text,often", *rows]))
    return load_captioned(SourceConfig(str(folder)).open(), size, folder.parent / "cache", "often")


def test_each_row_has_its_weight(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures", ["2", "0.5", "0", "1e1"])
    assert data.weights is not None
    assert data.weights.tolist() == [2, 0.5, 0, 10]
    part = data.part(np.array([3, 0])).weights
    assert part is not None
    assert part.tolist() == [10, 2]


@pytest.mark.parametrize("wrong", ["-1", "much", "", "nan", "inf"])
def test_a_weight_that_is_no_number_of_0_or_more_is_named(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures: a weight in the column often is .*; give a number, 0 or more"):
        pictures(tmp_path / "pictures", ["1", wrong, "2"])


def test_weights_that_show_nothing_and_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all weights in the column often are 0, so no row would be seen"):
        pictures(tmp_path / "pictures", ["0", "0"])
    with pytest.raises(DataError, match=r"the weight needs the column seldom; there are .*often"):
        load_captioned(SourceConfig(str(tmp_path / "pictures")).open(), 16, tmp_path / "cache", "seldom")


def test_training_shows_rows_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    drawn = CodeTransformerTask.batch

    def counted(self: CodeTransformerTask, rows: np.ndarray, rng: np.random.Generator):
        seen.update(rows.tolist())
        return drawn(self, rows, rng)

    monkeypatch.setattr(CodeTransformerTask, "batch", counted)
    data = pictures(tmp_path / "pictures", ["3", "1", "0", "2"], size=32)
    clip = micro_clip(Tokenizer.wordpiece().vocab_size)
    codes = np.zeros((4, 64), np.int16)
    recipe = TransformerRecipe(width=16, layers=1, heads=2, text_length=6, soft_codes=0.0)
    materials = Materials(
        data,
        {"clip": Tokenizer.wordpiece()},
        {"clip": clip, "vqgan": VQGAN(replace(vqgan_micro(), codebook_size=64))},
        codes=codes,
    )
    run_stage(StagePlan("transformer", recipe, LOOP), materials, tmp_path / "run")
    ahead = seen.total() - 24  # the batch that was read ahead of the last step
    assert {row: count for row, count in seen.items() if count > 2}.keys() == {0, 1, 3}
    assert all(abs(seen[row] - count) <= ahead for row, count in enumerate([12, 4, 0, 8]))
    again = replace(materials, decoys=data)
    with pytest.raises(TrainingError, match="only the source of a stage has a weight"):
        run_stage(StagePlan("transformer", recipe, LOOP), again, tmp_path / "other")
