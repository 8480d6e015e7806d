import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from codebrush.errors import PackError
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.code_transformer import CodeTransformer, CodeTransformerConfig
from codebrush.models.encoders.bag_of_words import BagOfWordsConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.pretrained import PretrainedModel, Unfilled, config_from_dict, config_to_dict, read_weights


@dataclass(frozen=True)
class Round:
    radius: float


@dataclass(frozen=True)
class Square:
    side: int
    corners: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class LinearConfig:
    width: int
    shape: Round | Square
    kind: Literal["plain", "fancy"] = "plain"
    title: str | None = None


class Linear(PretrainedModel):
    config_class = LinearConfig

    def __init__(self, config: LinearConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, 3)
        self.count: Tensor
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("derived", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Tied(Linear):
    def __init__(self, config: LinearConfig):
        super().__init__(config)
        self.twin = self.linear.bias


CONFIG = LinearConfig(4, Square(2, (5, 6)), "fancy")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files that this process writes cannot grow past `size` bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, *words: str) -> None:
    """Loading is a PackError of one line that holds all of `words`."""
    with pytest.raises(PackError) as caught:
        Linear.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_network_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = Linear(CONFIG)
    with torch.no_grad():
        model.count.fill_(11)
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = Linear.from_pretrained(str(tmp_path / "new" / "folder"))
    assert loaded.config == CONFIG
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys() == {"linear.weight", "linear.bias", "count"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_network_is_read_without_random_numbers(tmp_path: Path) -> None:
    """What a file has need not be drawn first; what it does not have, such as tables of positions, is made as ever."""
    sizes = CodeTransformerConfig(codebook_size=8, grid=(2, 2), width=16, layers=2, heads=2, text_embedding=8)
    plain = CodeTransformer.from_config(sizes).eval()
    plain.save_pretrained(tmp_path)
    for _ in range(3):  # memory that was used before holds other numbers
        loaded = CodeTransformer.from_pretrained(tmp_path)
        for mine, theirs in ((loaded.state_dict(), plain.state_dict()), *_buffers(loaded, plain)):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    after = nn.Linear(64, 64)
    assert after.weight.std() > 0.01  # filled again outside


def _buffers(*networks: nn.Module) -> list[tuple[dict[str, Tensor], ...]]:
    return [tuple(dict(network.named_buffers()) for network in networks)]


def test_only_this_thread_leaves_weights_unfilled() -> None:
    with Unfilled():
        inside = nn.Linear(64, 64)
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(nn.Linear, 64, 64).result()
        with torch.no_grad():
            inside.weight.zero_()
            nn.init.uniform_(inside.weight)
    assert not inside.weight.any()
    assert beside.weight.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Linear(CONFIG)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype=dtype)
    assert model.linear.weight.dtype == torch.float32
    loaded = Linear.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.linear.weight, model.linear.weight.to(dtype).float())
    assert not torch.equal(loaded.linear.weight, model.linear.weight)
    assert loaded.count.dtype == torch.int64
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < sizes[1]


def test_tied_weights_are_saved_for_each_name(tmp_path: Path) -> None:
    model = Tied(CONFIG)
    model.save_pretrained(tmp_path)
    loaded = Tied.from_pretrained(tmp_path)
    assert loaded.twin is loaded.linear.bias
    assert torch.equal(loaded.twin, model.twin)


def test_the_weights_may_be_read_by_whom_the_config_may(tmp_path: Path) -> None:
    Linear(CONFIG).save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


class TestConfigs:
    def test_nested_choices_and_tuples_come_back(self) -> None:
        for config in (CONFIG, LinearConfig(1, Round(0.5), title="a")):
            assert config_from_dict(LinearConfig, config_to_dict(config)) == config
            assert config_from_dict(LinearConfig, json.loads(json.dumps(config_to_dict(config)))) == config

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"colour": "red"}, ("LinearConfig", "'colour'")),
            ({"shape": {"type": "Star", "side": 2}}, ("'shape'", "'Star'")),
            ({"shape": {"type": "Square", "edge": 2}}, ("Square", "'edge'")),
            ({"shape": {"type": "Round"}}, ("Round", "radius")),
            ({"kind": "odd"}, ("'kind'", "'odd'", "plain, fancy")),
            ({"width": "wide"}, ("config.json",)),
            ({"width": True}, ("config.json", "'width' is True, which is of the wrong kind")),
            ({"width": 2.5}, ("config.json", "'width' is 2.5")),
            ({"width": [2]}, ("config.json", "'width' is [2]")),
            ({"width": -1}, ("config.json",)),
            ({"width": None}, ("config.json",)),
            ({"width": 5}, ("does not fit its config.json", "size mismatch")),
        ],
    )
    def test_a_field_that_does_not_belong_is_named(self, changes: dict, words: tuple[str, ...], tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        edit(tmp_path, **changes)
        refused(tmp_path, *words)

    def test_a_missing_field_is_named(self, tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"type": "LinearConfig", "width": 4}')
        refused(tmp_path, "LinearConfig", "'shape'")

    def test_sizes_that_no_network_can_have_are_a_pack_error(self, tmp_path: Path) -> None:
        sizes = CodeTransformerConfig(codebook_size=9, grid=(2, 2), width=16, layers=1, heads=2)
        CodeTransformer(sizes).save_pretrained(tmp_path)
        for changes in ({"heads": 0}, {"heads": 3}, {"width": 12}, {"grid": [2]}, {"grid": "2x2"}):
            (tmp_path / "config.json").write_text(json.dumps({**config_to_dict(sizes), **changes}))
            with pytest.raises(PackError, match=r"config\.json describes no network") as caught:
                CodeTransformer.from_pretrained(tmp_path)
            assert "\n" not in str(caught.value)


class TestDamage:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_missing_file_is_named(self, name: str, tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        (tmp_path / name).unlink()
        refused(tmp_path, str(tmp_path / name), "missing")

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "missing")

    @pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null"])
    def test_a_damaged_config_is_named(self, content: bytes, tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes(content)
        refused(tmp_path, "config.json", "damaged")

    @pytest.mark.parametrize("kept", [0, 4, 50, -1])
    def test_truncated_weights_are_named(self, kept: int, tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        refused(tmp_path, "model.safetensors", "damaged")

    def test_weights_of_another_network_do_not_fit(self, tmp_path: Path) -> None:
        Linear(CONFIG).save_pretrained(tmp_path)
        other = Linear(LinearConfig(9, Round(1.0)))
        other.save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
        refused(tmp_path, "model.safetensors", "does not fit its config.json")


class TestAFailedWrite:
    def test_a_full_disk_leaves_what_stood_there_before(self, tmp_path: Path) -> None:
        old = Linear(LinearConfig(500, Round(1.0)))
        old.save_pretrained(tmp_path)
        with room_for(3000), pytest.raises(PackError, match=r"model\.safetensors cannot be written") as caught:
            Linear(LinearConfig(500, Square(3))).save_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        loaded = Linear.from_pretrained(tmp_path)
        assert loaded.config == old.config
        assert torch.equal(loaded.linear.weight, old.linear.weight)
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_full_disk_leaves_nothing_under_the_final_names(self, tmp_path: Path) -> None:
        with room_for(3000), pytest.raises(PackError):
            Linear(LinearConfig(500, Round(1.0))).save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_a_file_stays_one(self, tmp_path: Path) -> None:
        place = tmp_path / "file"
        place.write_text("mine")
        for folder in (place, place / "below"):
            with pytest.raises(OSError, match="file"):
                Linear(CONFIG).save_pretrained(folder)
        assert place.read_text() == "mine"


def test_a_16_bit_clip_keeps_its_token_table_in_8_bits_and_its_texts_where_they_were(tmp_path: Path) -> None:
    text = BagOfWordsConfig(vocab_size=500, context_length=8, token_width=64, embed_dim=32)
    clip = CLIP.from_config(CLIPConfig(VisionTransformerConfig(32, 16, 32, 1, 2, 32), text)).eval()
    torch.nn.init.normal_(clip.text_encoder.token_embedding.weight)
    clip.save_pretrained(tmp_path / "whole")
    clip.save_pretrained(tmp_path / "small", torch.float16)
    assert read_weights(tmp_path / "small")["text_encoder.token_embedding.weight"].dtype == torch.float8_e4m3fn
    assert read_weights(tmp_path / "whole")["text_encoder.token_embedding.weight"].dtype == torch.float32
    tokens = torch.randint(1, 500, (16, 8))
    with torch.no_grad():
        there = CLIP.from_pretrained(tmp_path / "small").encode_text(tokens)
        assert float((there * clip.encode_text(tokens)).sum(1).min()) > 0.995


class Compact(Linear):
    compact = r".*weight"


@pytest.mark.parametrize("scale", [1e-6, 0.3, 40.0])
def test_weights_stored_in_rows_of_8_bits_are_near_and_the_same_when_stored_again(scale: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Compact(LinearConfig(64, Round(1.0)))
    torch.nn.init.normal_(model.linear.weight, std=scale)
    true = model.linear.weight.detach().clone()
    model.save_pretrained(tmp_path / "first", torch.float16)
    once = Compact.from_pretrained(tmp_path / "first")
    off = (once.linear.weight.detach() - true).abs().amax(1) / true.abs().amax(1).clamp(min=0.25)
    assert float(off.max()) < 0.0045
    once.save_pretrained(tmp_path / "second", torch.float16)
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (
        tmp_path / "first" / "model.safetensors"
    ).read_bytes()
