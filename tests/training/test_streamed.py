"""Training on streamed shards: the bits of a resumed run, of any number of workers, and mixes by their shares."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from codebrush.errors import TrainingError
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, CaptionTokens, SourceConfig, load_captioned
from codebrush.training.engine.loop import CHECKPOINT, Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.rows import step_rng
from codebrush.training.engine.task import Hooks
from codebrush.training.recipes import read_recipe
from codebrush.training.single_stage import train_stage
from codebrush.training.stage import Materials
from codebrush.training.streamed import LARGE, Streamed, caption_tokens, is_streamed, open_pictures
from codebrush.training.tokenizers import make_tokenizer
from shard_files import row_shown, write_shards

LOOP = {"steps": 6, "batch_size": 4, "warmup": 1, "threads": 1, "log_every": 3, "checkpoint_every": 2}
CLIP = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1}


def recipe(
    folder: Path, stage: str = "clip", name: str = "recipe", loop: dict[str, Any] | None = None, **more: Any
) -> Path:
    path = folder / f"{name}.yaml"
    settings = {"clip": {**CLIP, "text_heads": 2, "embed_dim": 16, "token_table": False}}.get(stage, {})
    path.write_text(yaml.safe_dump({"stage": stage, "recipe": settings, "loop": {**LOOP, **(loop or {})}, **more}))
    return path


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / CHECKPOINT, weights_only=True)


def flat(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in flat(value)]
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in flat(value)]
    return [values]


def same(ours: Any, theirs: Any) -> bool:
    pairs = list(zip(flat(ours), flat(theirs), strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", [5, 3, 6, 4], broken=(2, 9))


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_killed_run_goes_on_at_the_same_bits_with_another_number_of_workers(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(workers: int) -> Path:
        source = {"source": str(shards), "stream": True, "open_shards": 2, "workers": workers}
        return recipe(tmp_path, name=f"with-{workers}", source=source)

    figures = train_stage("clip", file(0), tmp_path / "whole" / "clip")
    assert figures["stages"]["clip"]["skipped"] == 2
    after = Loop._after_step

    def killed(self: Loop, *given: Any) -> None:
        after(self, *given)
        if self.step == 3:
            raise SystemExit("killed")

    monkeypatch.setattr(Loop, "_after_step", killed)
    with pytest.raises(SystemExit):
        train_stage("clip", file(4), tmp_path / "parts" / "clip")
    monkeypatch.undo()
    train_stage("clip", file(1), tmp_path / "parts" / "clip", resume=True)
    assert same(state(tmp_path / "parts" / "clip"), state(tmp_path / "whole" / "clip"))
    assert not [*(tmp_path / "whole" / "cache").glob("stream-*")]


def test_streamed_rows_are_those_of_the_table(shards: Path, tmp_path: Path) -> None:
    source = SourceConfig(str(shards), stream=True, limit=2)
    data, tokenizer = Streamed([source], 8, tmp_path / "cache"), Tokenizer.wordpiece()
    stored = load_captioned(source.open(), 8, tmp_path / "cache")
    rows = data.ready(np.array([1, 0, 1]))
    assert torch.equal(data.images(rows), stored.images(rows))
    drawn = [
        tokens.draw(rows, step_rng(0, 1))
        for tokens in (caption_tokens(data, tokenizer), CaptionTokens(stored, tokenizer))
    ]
    assert torch.equal(*drawn)
    groups = data.groups[rows]
    assert groups[0] == groups[2] != groups[1]
    data.close()


def test_a_mix_draws_by_shares_also_from_a_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for row in range(3):
        Image.new("RGB", (8, 8), (row, 1, 0)).save(tmp_path / "pictures" / f"{row}.png")
        (tmp_path / "pictures" / f"{row}.txt").write_text("a square")
    sources = [
        SourceConfig(str(write_shards(tmp_path / "shards", [20, 20])), share=3),
        SourceConfig(str(tmp_path / "pictures"), share=1),
    ]
    data = open_pictures(sources, 8, tmp_path / "cache")
    assert isinstance(data, Streamed)
    hooks = data.hooks(Hooks(), LoopConfig(steps=2, batch_size=64))
    assert hooks.rows is not None
    shown = []
    for step in range(4):
        rows = data.ready(hooks.rows(step))
        shown.append([row_shown(image.permute(1, 2, 0).numpy()) for image in data.images(rows)])
        assert {data.captions(row)[0] for row in rows[rows >= 40].tolist()} == {"a square"}
    assert [sum(row >= 256 for row in rows) for rows in shown] == [16] * 4
    counts = np.bincount([row for rows in shown for row in rows if row < 256])
    assert (len(counts), counts.min(), counts.max()) == (40, 4, 5)  # 192 rows: four epochs and 32 of the fifth
    data.close()


def test_a_source_is_streamed_by_its_place_its_size_or_its_word(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_streamed(SourceConfig("s3://bucket/pets"))
    assert is_streamed(SourceConfig(str(shards), stream=True))
    assert not is_streamed(SourceConfig(str(shards)))
    monkeypatch.setattr("codebrush.training.streamed.LARGE", 1000)
    assert is_streamed(SourceConfig(str(shards)))
    assert not is_streamed(SourceConfig(str(shards), stream=False))
    assert LARGE > 1 << 30


def test_a_resumed_run_with_other_shards_or_lanes_is_refused(shards: Path, tmp_path: Path) -> None:
    source = {"source": str(shards), "stream": True, "limit": 2}
    train_stage("clip", recipe(tmp_path, source=source, loop={"steps": 1}), tmp_path / "run")
    other = recipe(tmp_path, source={**source, "open_shards": 3}, loop={"steps": 1})
    with pytest.raises(TrainingError, match="began with other pictures"):
        train_stage("clip", other, tmp_path / "run", resume=True)


def test_what_needs_the_whole_source_ahead_says_so(shards: Path, tmp_path: Path) -> None:
    source = SourceConfig(str(shards), stream=True)
    with pytest.raises(TrainingError, match=r"source\.weight"):
        Streamed([SourceConfig(**{**asdict(source), "weight": "row"})], 8, tmp_path / "cache")
    data = Streamed([source], 8, tmp_path / "cache")
    with pytest.raises(TrainingError, match="bpe"):
        make_tokenizer("bpe", data)
    with pytest.raises(TrainingError, match=r"set source\.stream: false"):
        _ = Materials(data, {}).stored
    with pytest.raises(TrainingError, match="take out replay"):
        data.hooks(Hooks(rows=lambda step: np.zeros(1, np.int64)), LoopConfig(steps=1, batch_size=1))
    data.close()


def test_a_recipe_names_one_source_or_a_mix(tmp_path: Path) -> None:
    mix = [{"source": "a", "share": 3}, {"source": "b"}]
    assert [(each.source, each.share) for each in read_recipe(recipe(tmp_path, mix=mix)).sources] == [
        ("a", 3),
        ("b", 1),
    ]
    assert [each.source for each in read_recipe(recipe(tmp_path, mix=mix), source="c").sources] == ["c"]
    with pytest.raises(TrainingError, match="both a source and a mix"):
        read_recipe(recipe(tmp_path, mix=mix, source={"source": "a"}))
    with pytest.raises(TrainingError, match=r"mix\.0\.share"):
        read_recipe(recipe(tmp_path, mix=[{"source": "a", "share": 0}]))


def test_small_shards_are_still_decoded_ahead(shards: Path, tmp_path: Path) -> None:
    assert isinstance(open_pictures([SourceConfig(str(shards), limit=2)], 8, tmp_path / "cache"), Captioned)
