"""Packs: written whole, read back, and refused with one line when they are missing, damaged or ill-matched."""

import hashlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from codebrush import Codebrush
from codebrush.errors import PackError
from codebrush.models.captioner import Captioner, CaptionerConfig, patch_features
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.modified_resnet import ModifiedResNetConfig
from codebrush.models.pretrained import TABLE_DTYPE
from codebrush.pack import pack as pack_module
from codebrush.pack.pack import HASHED_FILES, Pack, encode_condition, installed_packs, open_pack, text_condition
from codebrush.text.tokenizer import Tokenizer
from packs import CONTEXT, WIDTH, micro_clip, micro_tokenizer, micro_transformer, write_micro_pack


@pytest.fixture
def pack(micro_pack: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(micro_pack, tmp_path / "pack" / "copy"))


def change_json(path: Path, **changes: object) -> None:
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def change_info(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "pack.json", **changes)


def change_config(member: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / member / "config.json", **changes)


def cut_weights(folder: Path) -> None:
    with open(folder / "vqgan" / "model.safetensors", "r+b") as file:
        file.truncate(2000)


def use_all(pack: Pack) -> None:
    for name in ("tokenizer", "clip", "vqgan", "transformer"):
        getattr(pack, name)


def test_a_pack_comes_back_as_it_was_written(micro_pack: Path) -> None:
    torch.manual_seed(0)
    clip = micro_clip()  # the first member that the same seed made
    pack = open_pack(micro_pack)
    assert (pack.name, pack.image_size, pack.info["licence"]) == ("micro", 32, "CC0-1.0")
    assert pack.info["provenance"] == {"recipe": "none"}
    for name, tensor in clip.state_dict().items():
        read = pack.clip.state_dict()[name]
        assert read.dtype == torch.float32
        stored = tensor.to(TABLE_DTYPE) if name in clip.tables else tensor.half()
        torch.testing.assert_close(read, stored.float(), rtol=0, atol=0)
    stored = load_file(micro_pack / "clip" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16, TABLE_DTYPE}
    assert not any(model.training for model in (pack.clip, pack.vqgan, pack.transformer))
    text = "a red circle on a blue square"
    assert torch.equal(pack.tokenizer(text), micro_tokenizer()(text))


def test_a_packs_temperature_calms_its_probabilities(tmp_path: Path) -> None:
    packs = [write_micro_pack(tmp_path / name, temperature=value) for name, value in (("own", None), ("calm", 4.0))]
    image, labels = Image.new("RGB", (32, 32), "red"), ["a dog", "a cat"]
    own, calm = (Codebrush.from_pretrained(pack, device="cpu").classify([image], labels)[0] for pack in packs)
    assert [label for label, _ in own] == [label for label, _ in calm]
    assert 0.5 < calm[0][1] < own[0][1]


def test_members_are_loaded_once_and_late(micro_pack: Path) -> None:
    pack = Pack(micro_pack)
    assert "vqgan" not in vars(pack)
    assert pack.vqgan is pack.vqgan


def test_the_hash_of_large_weights_takes_little_memory(pack: Path) -> None:
    with open(pack / "vqgan" / "model.safetensors", "r+b") as file:
        file.truncate(64 << 20)
    opened = Pack(pack)
    tracemalloc.start()
    found = opened.hash
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    digest = hashlib.sha256()
    for member in ("clip", "transformer", "vqgan"):
        for name in HASHED_FILES:
            if (path := pack / member / name).is_file():
                digest.update(f"{member}/{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    assert found == digest.hexdigest()


def test_the_hash_is_that_of_what_draws(pack: Path) -> None:
    original = Pack(pack).hash
    assert len(original) == 64
    change_json(pack / "pack.json", name="renamed", version="2")
    (pack / "README.md").write_text("a card")
    assert Pack(pack).hash == original
    config = pack / "clip" / "tokenizer_config.json"
    kept = config.read_text()
    change_json(config, model_max_length=CONTEXT - 1)
    assert Pack(pack).hash != original
    config.write_text(kept)
    weights = pack / "transformer" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert Pack(pack).hash != original


DAMAGE = [
    (lambda folder: (folder / "pack.json").unlink(), "has no pack.json"),
    (lambda folder: (folder / "pack.json").write_text('{"format": 1,'), "pack.json is damaged"),
    (lambda folder: (folder / "pack.json").write_bytes(b"\xff\xfe\x00"), "pack.json is damaged"),
    (lambda folder: (folder / "pack.json").write_text("[1]"), "pack.json is damaged"),
    (change_info(format=2), "format 2, not 1"),
    (change_info(name=...), "'name' must be a text"),
    (change_info(image_size="big"), "'image_size' must be a number"),
    (change_info(image_size=0), "'image_size' must be positive"),
    (change_info(members=["clip"]), "'members' must be an object"),
    (change_info(members={"clip": "clip", "transformer": "transformer"}), "does not say where the vqgan is"),
    (change_info(members={"clip": "clip", "vqgan": "vqgan", "transformer": 3}), "not say where the transformer is"),
    (change_info(members={"clip": "clip", "vqgan": "vq", "transformer": "transformer"}), "config.json is mis"),
    (change_info(defaults=[3]), "'defaults' must be an object"),
    (change_info(guidance=[3]), "'guidance' must be an object"),
    (change_info(painter="oil"), "its 'painter' must be sample or flow, not 'oil'"),
    (change_info(painter=["flow"]), "its 'painter' must be sample or flow"),
    (lambda folder: (folder / "vqgan" / "config.json").unlink(), "vqgan/config.json is missing"),
    (lambda folder: (folder / "clip" / "config.json").write_text("{"), "clip/config.json is damaged"),
    (change_config("vqgan", colour="red"), "no field 'colour'"),
    (change_config("vqgan", channel_multipliers=[1, 1, "x"]), "vqgan.*(damaged|no network)"),
    (change_config("transformer", heads=5), "transformer.*(damaged|no network)"),
    (
        change_config("transformer", grid="8 x 8"),
        "transformer.config.json describes no network: config field 'grid' is '8 x 8'",
    ),
    (change_config("clip", image=7), "damaged"),
    (cut_weights, "model.safetensors is damaged"),
    (lambda folder: (folder / "clip" / "model.safetensors").unlink(), "clip/model.safetensors is missing"),
    (lambda folder: (folder / "clip" / "model.safetensors").write_bytes(b""), "clip/model.safetensors is dam"),
    (change_config("clip", log_scale=1.0), "no field 'log_scale'"),
    (change_config("transformer", layers=3), "does not fit its config.json"),
    (lambda folder: (folder / "clip" / "tokenizer.json").unlink(), "tokenizer.json"),
    (lambda folder: (folder / "clip" / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    (change_config("transformer", codebook_size=64), "writes 64 codes, but the VQGAN has 128"),
    (change_config("transformer", grid=[4, 4]), "a grid of 4 x 4 codes, but the VQGAN"),
    (change_info(image_size=64), "pictures are 64 wide"),
    (change_config("transformer", text_features=WIDTH + 4), "text features 36 wide, but the CLIP makes them 32"),
    (change_config("transformer", text_embedding=8), "embeddings 8 wide, but the CLIP makes them 24"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_one_line_that_names_it(pack: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(pack)
    with pytest.raises(PackError, match=message) as caught:
        use_all(open_pack(pack))
    assert "\n" not in str(caught.value)
    assert str(pack) in str(caught.value) or "no field" in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_too_little_memory_is_not_called_damage(pack: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(folder: Path) -> CLIP:
        raise error

    monkeypatch.setattr(CLIP, "from_pretrained", no_room)
    with pytest.raises(type(error)) as caught:
        use_all(open_pack(pack))
    assert caught.value is error  # for which the command line and the server have a line of their own


def test_a_pack_of_members_that_lie_elsewhere_may_have_no_transformer(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("CODEBRUSH_HOME", str(home))
    for member in ("clip", "vqgan"):
        shutil.copytree(pack / member, home / "models" / f"some-{member}")
    folder = home / "packs" / "together"
    folder.mkdir(parents=True)
    members = {"clip": "../../models/some-clip", "vqgan": "../../models/some-vqgan"}
    info = {"format": 1, "name": "together", "image_size": 32, "members": members}
    (folder / "pack.json").write_text(json.dumps(info))
    assert installed_packs() == ["together"]
    found = open_pack("together")
    assert found.clip.image_size == 32
    assert found.vqgan.factor == 4
    assert not found.has("transformer")
    assert found.hash != Pack(pack).hash
    with pytest.raises(PackError, match="'together' has no code transformer: use --method guide"):
        _ = found.transformer
    change_json(folder / "pack.json", image_size=30)
    with pytest.raises(PackError, match="4 pixels a code, but the pictures are 30 wide"):
        open_pack("together")


def test_a_tokenizer_must_fit_its_clip(pack: Path) -> None:
    path = pack / "clip" / "tokenizer_config.json"
    change_json(path, model_max_length=CONTEXT + 1)
    with pytest.raises(PackError, match=f"rows of {CONTEXT + 1} tokens, but the CLIP reads {CONTEXT}"):
        use_all(open_pack(pack))
    with pytest.raises(PackError, match=r"pack/copy: .* tokenizer has 262 tokens, but the CLIP has 200"):
        write_micro_pack(pack, clip=micro_clip(vocab_size=200))


def test_what_is_no_pack_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "BUILT_IN", tmp_path / "packs")
    write_micro_pack(tmp_path / "packs" / "one")
    (tmp_path / "packs" / "unfinished").mkdir()
    with pytest.raises(PackError, match=r"no pack 'other'.*\(one\)"):
        open_pack("other")
    with pytest.raises(PackError, match=r"no folder '.*/nowhere/at/all'"):
        open_pack(str(tmp_path / "nowhere/at/all"))
    with pytest.raises(PackError, match="has no pack"):
        open_pack(tmp_path)
    with pytest.raises(PackError, match="no pack ''"):
        open_pack("")


def test_a_built_in_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "BUILT_IN", tmp_path / "packs")
    write_micro_pack(tmp_path / "packs" / "one", version="built in")
    write_micro_pack(tmp_path / "one", version="a folder")
    monkeypatch.chdir(tmp_path)
    assert open_pack("one").info["version"] == "built in"
    assert open_pack("./one").info["version"] == "a folder"
    assert open_pack("./one").source == "./one"


def test_a_hub_id_is_looked_up_in_the_hubs_cache(
    micro_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PackError, match="no folder 'someone/pack' is here, and the hub gave no such pack") as e:
        open_pack("someone/pack")
    assert "\n" not in str(e.value)
    stored = tmp_path / "models--someone--pack"
    shutil.copytree(micro_pack, stored / "snapshots" / ("0" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0" * 40)
    found = open_pack("someone/pack")
    assert found.hash == open_pack(micro_pack).hash
    assert found.source == "someone/pack"


def test_writing_again_replaces_the_pack_and_keeps_the_rest(pack: Path) -> None:
    before = open_pack(pack).hash
    (pack / "README.md").write_text("a card")
    (pack / "runs").mkdir()
    (pack / "runs" / "log").write_text("steps")
    write_micro_pack(pack, seed=1)
    assert open_pack(pack).hash != before
    assert (pack / "README.md").read_text() == "a card"
    assert (pack / "runs" / "log").read_text() == "steps"
    assert [path.name for path in pack.parent.iterdir()] == ["copy"]


def test_what_cannot_be_written_leaves_the_pack_as_it_was(pack: Path) -> None:
    before = open_pack(pack).hash
    endless = micro_transformer()
    with torch.no_grad():
        endless.head.weight[0, 0] = 1e6
    with pytest.raises(PackError, match=r"the transformer's 'head.weight' is not finite as torch.float16"):
        write_micro_pack(pack, transformer=endless)
    with pytest.raises(PackError, match="writes 64 codes, but the VQGAN has 128"):
        write_micro_pack(pack, transformer=micro_transformer(codebook_size=64))
    assert open_pack(pack).hash == before
    assert [path.name for path in pack.parent.iterdir()] == ["copy"]
    wide = write_micro_pack(pack, transformer=endless, dtype=torch.bfloat16)
    assert open_pack(wide).transformer.head.weight[0, 0].item() == pytest.approx(1e6, rel=1e-2)


def test_a_pack_whose_writer_died_between_renames_is_brought_back(pack: Path) -> None:
    (pack / "notes.txt").write_text("kept")
    os.replace(pack, pack.with_name(f".{pack.name}.old"))
    write_micro_pack(pack, seed=1)
    assert (pack / "notes.txt").read_text() == "kept"


def test_nothing_but_a_pack_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "clip").mkdir(parents=True)
    (mine / "clip" / "holiday.mp4").write_bytes(b"film")
    with pytest.raises(PackError, match="clip is in the way"):
        write_micro_pack(mine)
    assert (mine / "clip" / "holiday.mp4").read_bytes() == b"film"
    (tmp_path / "file").write_text("text")
    with pytest.raises(PackError, match="is a file: name a folder"):
        write_micro_pack(tmp_path / "file")
    with pytest.raises(PackError, match="cannot be written: Not a directory"):
        write_micro_pack(tmp_path / "file" / "pack")


def test_a_captioner_may_read_a_resnet_whose_last_map_is_a_single_pixel(tmp_path: Path) -> None:
    text = micro_clip().config.text
    clip = CLIP.from_config(CLIPConfig(ModifiedResNetConfig(32, 8, (1, 1, 1, 1), 4, 24), text)).eval()
    patches, width = patch_features(clip.image_encoder, torch.rand(1, 3, 32, 32), (0, -1)).shape[1:]
    config = CaptionerConfig(262, CONTEXT, 32, 1, 2, patches=patches, feature_width=width, levels=(0, -1), end_id=261)
    pack = write_micro_pack(tmp_path / "pack", clip=clip, captioner=Captioner(config), words=micro_tokenizer())
    assert open_pack(pack).captioner.config.patches == patches


def test_conditions_are_what_the_transformer_reads() -> None:
    torch.manual_seed(0)
    clip, tokenizer, config = micro_clip(), micro_tokenizer(), micro_transformer().config
    texts = ["a red circle", "a blue square on the left"]
    condition = encode_condition(clip, tokenizer, texts, config)
    tokens = tokenizer(texts)
    assert condition.text_features is not None
    assert condition.text_mask is not None
    assert condition.text_embedding is not None
    assert condition.text_features.shape == (2, CONTEXT, WIDTH)
    assert condition.text_mask.sum(1).tolist() == (tokens != tokenizer.pad_id).sum(1).tolist()
    torch.testing.assert_close(condition.text_embedding, clip.encode_text(tokens).detach())
    assert not condition.text_features.requires_grad
    assert not condition.text_embedding.requires_grad
    without = type(config)(codebook_size=4, grid=(2, 2), width=8, layers=1, heads=1, text_embedding=24)
    assert text_condition(clip, tokens, without).text_features is None


def test_an_article_before_a_prompt_says_nothing_to_the_built_in_pack() -> None:
    """Its captions have none, and its code transformer reads what stands where."""
    tokenizer = open_pack("emoji").tokenizer
    for article in ("a ", "A ", "an ", "the "):
        assert tokenizer.ids([f"{article}rocket and a star"]) == tokenizer.ids(["rocket and a star"])
    for text in ("a", "theatre", "A button (blood type)"):
        assert len(tokenizer.ids([text])[0]) == len(Tokenizer.wordpiece().ids([text])[0])
