"""The tensors of TorchScript archives are read, and archives that were made to do harm are refused."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_equal, pair, refusal, rewrite, save_script, state_dict

from codebrush.conversion.checkpoints import read_checkpoint


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_archive_is_read_and_not_run(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch):
    path = save_script(tmp_path / "model.bin", how)
    monkeypatch.setattr(torch.jit, "load", None)
    found = read_checkpoint(path)
    expected = pair().state_dict()
    assert {tensor.dtype for tensor in expected.values()} == {torch.float16, torch.float32, torch.int64}
    assert_equal({name: found.tensors.pop(name) for name in expected}, expected)
    assert found.tensors == {}
    # a traced module keeps no plain numbers
    assert found.extras == ({"input_resolution": 224} if how == "script" else {})


@pytest.mark.parametrize("scripted_before", [0, 2])
def test_an_archive_of_an_older_torch_does_not_name_its_buffers(tmp_path: Path, scripted_before: int):
    for number in range(scripted_before):  # TorchScript then gives the same class another name and source file
        save_script(tmp_path / f"{number}.pt")
    path = save_script(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    sources = [
        name for name in names if name.startswith("code/") and "checkpoint_files" in name and "debug" not in name
    ]
    assert sources
    rewrite(path, {**dict.fromkeys(sources, b"class Pair(Module):\n"), "byteorder": None})
    names = set(read_checkpoint(path).tensors)
    assert names == pair().state_dict().keys() | {"visual.mask", "text.mask"}


def test_endlessly_nested_modules_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = type("Twice", (), {"__module__": "__torch__"})
    home = types.ModuleType("__torch__")
    monkeypatch.setattr(home, "Twice", kind, raising=False)
    monkeypatch.setitem(sys.modules, "__torch__", home)
    module = kind()
    for _ in range(60):  # 2 to the power of 60 of them
        outer = kind()
        outer.__dict__.update(a=module, b=module)
        module = outer
    path = save_script(tmp_path / "model.pt")
    rewrite(path, {"data.pkl": pickle.dumps(module, protocol=2)})
    assert "more than 100000 modules" in refusal(path)


def test_read_tensors_share_nothing_with_the_file(tmp_path: Path):
    path = save_script(tmp_path / "model.pt")
    found = read_checkpoint(path).tensors
    path.write_bytes(b"")
    assert torch.equal(found["visual.linear.weight"], pair().visual.linear.weight)


@pytest.mark.parametrize("name", ["../evil", "/evil", "archive/../../evil", "archive\\evil", "C:/evil", "../e\nvil"])
def test_an_entry_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "model.pt"
    torch.save(state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"evil")
    assert "leads out of the archive" in refusal(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_entry_is_refused(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save(state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/0", b"other")
    assert "two entries named 'model/data/0'" in refusal(path)


def test_a_zip_bomb_is_refused(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1 << 20)}, path)
    rewrite(path, {}, compress=True)
    assert path.stat().st_size < 20_000
    assert "zip bomb" in refusal(path)


def test_a_compressed_entry_is_refused(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save(state_dict(), path)
    rewrite(path, {}, compress=True)
    assert "is compressed" in refusal(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save(state_dict(), path)
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        content[place + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(path)


def test_a_zip_archive_of_other_files_is_refused(tmp_path: Path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"weights")
    assert "not one of torch.save" in refusal(path)


def test_big_endian_numbers_are_refused(tmp_path: Path):
    path = save_script(tmp_path / "model.pt")
    rewrite(path, {"byteorder": b"big"})
    assert "big-endian" in refusal(path)


def test_a_long_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(1), "text": "x" * (2 << 20)}, path)
    assert read_checkpoint(path).tensors["w"].tolist() == [1.0]
    monkeypatch.setattr("codebrush.conversion.archives._MAX_PICKLE", 1 << 20)
    assert "'data.pkl' has more than 1 MB" in refusal(path)


@pytest.mark.parametrize("kind", ["zip", "script"])
def test_a_changed_number_is_noticed(tmp_path: Path, kind: str):
    path = save_script(tmp_path / "a.pt") if kind == "script" else tmp_path / "a.pt"
    if kind == "zip":
        torch.save(pair().state_dict(), path)
    content = bytearray(path.read_bytes())
    place = content.find(pair().visual.linear.weight.detach().numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    assert "checksum" in refusal(path)


def stored_tensor(numel: int = 4, offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)):
    """A state dict of one tensor as torch pickles it, with any numbers in it."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    class Stored:
        def __reduce__(self) -> tuple[object, ...]:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"w": Stored()})
    return file.getvalue()


OUTSIDE: list[dict[str, object]] = [
    {"numel": 5},
    {"numel": 1 << 40, "size": (1 << 40,)},
    {"numel": -4},
    {"offset": 1},
    {"offset": -1},
    {"size": (5,)},
    {"size": (-1,)},
    {"size": (2, 2), "stride": (3, 1)},
    {"size": (4,), "stride": (-1,)},
    {"size": (1 << 40,), "stride": (0,)},
    {"size": (4, 4), "stride": (1,)},
    {"size": (1 << 62, 1 << 62), "stride": (0, 0)},
    {"size": "4", "stride": "1"},
    {"numel": "4"},
]


@pytest.mark.parametrize("kind", ["zip", "script"])
@pytest.mark.parametrize("wrong", OUTSIDE, ids=str)
def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path, kind: str, wrong: dict[str, object]):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    script = {"constants.pkl": b"\x80\x02)."} if kind == "script" else {}
    rewrite(path, {"data.pkl": stored_tensor(**wrong), **script})  # pyright: ignore
    assert "is damaged" in refusal(path)


def test_the_same_tensor_inside_its_storage_is_read(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    rewrite(path, {"data.pkl": stored_tensor(offset=1, size=(2, 1), stride=(2, 9))})
    assert read_checkpoint(path).tensors["w"].tolist() == [[1.0], [3.0]]


def test_missing_numbers_are_noticed(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    rewrite(path, {"data/0": None})
    assert "storage '0' are missing" in refusal(path)
