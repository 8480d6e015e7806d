"""Training on streamed shards: the bits of a resumed run, of any number of workers, and mixes by their shares."""

from collections import Counter
from dataclasses import asdict, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gloo import run_together
from torch import Tensor

from codebrush.data.streaming.stream import Stream
from codebrush.errors import TrainingError
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import Captioned, CaptionTokens, SourceConfig, load_captioned
from codebrush.training.engine.checkpoints import CHECKPOINT
from codebrush.training.engine.loop import Loop
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.engine.rows import step_rng
from codebrush.training.engine.task import Hooks
from codebrush.training.recipes import read_recipe
from codebrush.training.registry import STAGES
from codebrush.training.run_folder import STAGE_FILE, read_plan
from codebrush.training.single_stage import skipped_anywhere, train_stage
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
    assert not is_streamed(SourceConfig(str(shards)), by_itself=False)
    assert is_streamed(SourceConfig(str(shards), stream=True), by_itself=False)
    assert LARGE > 1 << 30


def test_large_shards_are_not_streamed_to_a_stage_that_reads_all_ahead(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.training.streamed.LARGE", 1000)
    source = SourceConfig(str(shards), limit=2)
    assert isinstance(open_pictures([source], 8, tmp_path / "cache", streams=False), Captioned)
    data = open_pictures([source], 8, tmp_path / "cache")
    assert isinstance(data, Streamed)
    data.close()
    streaming = [name for name, stage in STAGES.items() if stage.streams]
    assert streaming == ["clip", "vqgan", "prior", "upscaler"]


def test_a_stage_that_reads_all_ahead_says_so_before_anything_is_opened(tmp_path: Path) -> None:
    nowhere = SourceConfig(str(tmp_path / "nowhere"), stream=True)
    for sources, remedy in (
        ([nowhere], r"set source\.stream: false"),
        ([SourceConfig("http://127.0.0.1:9/pets.tar")], "download the source, and name the copy"),
        ([nowhere, nowhere], "name one source in place of the mix"),
    ):
        with pytest.raises(TrainingError, match=f"reads all of its pictures ahead: {remedy}"):
            open_pictures(sources, 8, tmp_path / "cache", streams=False)


def test_a_resumed_run_reads_its_source_as_it_began(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path, source={"source": str(shards), "limit": 2}, loop={"steps": 1})
    train_stage("clip", file, tmp_path / "stored")
    monkeypatch.setattr("codebrush.training.streamed.LARGE", 1000)
    train_stage("clip", file, tmp_path / "stored", resume=True)
    assert "streamed" not in read_plan(tmp_path / "stored").facts
    train_stage("clip", file, tmp_path / "streamed")
    monkeypatch.undo()
    assert read_plan(tmp_path / "streamed").facts["streamed"] is True
    train_stage("clip", file, tmp_path / "streamed", resume=True)


def test_a_mix_that_cannot_be_drawn_leaves_the_folder_free(shards: Path, tmp_path: Path) -> None:
    mix = [{"source": str(shards), "limit": 2, "share": share} for share in (1e5, 1)]
    with pytest.raises(TrainingError, match=r"below 0\.1 %"):
        train_stage("clip", recipe(tmp_path, mix=mix), tmp_path / "run")
    assert not (tmp_path / "run" / STAGE_FILE).exists()


def test_uneven_shards_are_opened_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, opened, real = [9, 7, 10, 8, 7, 9, 10, 8, 7, 10, 9, 8], Counter[int](), Stream._opened

    def counting(self: Stream, number: int, folder: Path) -> Any:
        opened[number] += 1
        return real(self, number, folder)

    monkeypatch.setattr(Stream, "_opened", counting)
    folder = write_shards(tmp_path / "shards", counts)
    data = Streamed([SourceConfig(str(folder), stream=True, open_shards=3, workers=2)], 8, tmp_path / "cache")
    rows_of = data.hooks(Hooks(), LoopConfig(steps=8, batch_size=12)).rows
    assert rows_of is not None
    for step in range(sum(counts) // 12):
        for row in data.ready(rows_of(step)).tolist():
            data.captions(row)
    assert set(opened.values()) == {1}
    data.close()


def test_what_could_not_be_read_is_told_at_the_end_also_of_one(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [2])
    (folder / "0001.tar").write_bytes(b"no tar" * 100)
    with pytest.warns(UserWarning, match=r"0001\.tar: .*, and is left out"):
        data = Streamed([SourceConfig(str(folder), stream=True)], 8, tmp_path / "cache")
    with pytest.warns(UserWarning, match="shards: 1 shard or picture could not be read or were left out"):
        data.close()


def met(rank: int, folder: str) -> None:
    """One of two processes: what it and the other one skipped."""
    data = Streamed([SourceConfig(folder, stream=True, workers=0)], 8, Path(folder).parent / f"cache-{rank}")
    data.ready(np.array([[0, 1, 6], [4, 6, 7]][rank]))
    assert data.streams[0].skipped == [2, 1][rank]
    assert skipped_anywhere(data) == 2
    data.close()


def test_pictures_that_any_process_skipped_are_counted_once(tmp_path: Path, processes: ForkServerContext) -> None:
    folder = write_shards(tmp_path / "shards", [4, 4], broken=(1, 6))
    assert run_together(processes, 2, met, str(folder)) == [0, 0]


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


def test_in_a_mix_the_remedy_is_one_that_helps(shards: Path, tmp_path: Path) -> None:
    source = SourceConfig(str(shards), limit=2)
    data = Streamed([source, source], 8, tmp_path / "cache")
    for wrong in (
        lambda: Materials(data, {}).stored,
        lambda: make_tokenizer("bpe", data),
        lambda: data.hooks(Hooks(rows=lambda step: np.zeros(1, np.int64)), LoopConfig(steps=1, batch_size=1)),
    ):
        with pytest.raises(TrainingError, match="name one source in place of the mix"):
            wrong()
    data.close()
    with pytest.raises(TrainingError, match=r"mix\.1\.weight .*: take it out, and give each source a share"):
        Streamed([source, replace(source, weight="row")], 8, tmp_path / "cache")
    with pytest.raises(TrainingError, match=r"mix\.1\.stream is false, but a mix is always streamed: take it out"):
        Streamed([source, replace(source, stream=False)], 8, tmp_path / "cache")
    with pytest.raises(TrainingError, match=r"source\.stream is false, but an address is .*: take it out, or download"):
        open_pictures([SourceConfig("s3://bucket/pets", stream=False)], 8, tmp_path / "cache")


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
