"""A pickle that would run code is refused with the name of what it would call, and nothing is run."""

import argparse
import collections
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import assert_equal, refusal, rewrite, save_script, state_dict
from lightning_fabric.utilities.data import AttributeDict

from codebrush.conversion.checkpoints import read_checkpoint


class Payload:
    """Calls a function when a careless reader unpickles it."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


MARK = "was_run"
PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    f"{os.system.__module__}.system": lambda mark: Payload(os.system, f"touch {mark}"),
    "builtins.exec": lambda mark: Payload(exec, f"open({str(mark)!r}, 'w').close()"),
    "builtins.eval": lambda mark: Payload(eval, f"open({str(mark)!r}, 'w').close()"),
    f"{open.__module__}.open": lambda mark: Payload(open, str(mark), "w"),
    "subprocess.check_call": lambda mark: Payload(subprocess.check_call, ["touch", str(mark)]),
    "builtins.getattr": lambda mark: Payload(getattr, Payload(open, str(mark), "w"), "name"),
}
every_payload = pytest.mark.parametrize("name", list(PAYLOADS))


@pytest.fixture
def mark(tmp_path: Path):
    """The file that a payload would create; it must not be there in the end."""
    path = tmp_path / MARK
    yield path
    assert not path.exists()


@every_payload
def test_the_payloads_would_run(name: str, tmp_path: Path):
    path = tmp_path / MARK
    pickle.loads(pickle.dumps(PAYLOADS[name](path)))
    assert path.exists()


@every_payload
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "beside", "within"])
def test_torch_save(name: str, new: bool, place: str, mark: Path):
    payload = PAYLOADS[name](mark)
    content = {
        "alone": payload,
        "beside": {"state_dict": state_dict(), "epoch": payload},
        "within": {**state_dict(), "w": [{"x": (payload,)}]},
    }[place]
    path = mark.with_name("a.pt")
    torch.save(content, path, _use_new_zipfile_serialization=new)
    assert f"holds '{name}', which is neither a tensor nor one of the known classes" in refusal(path)


@every_payload
def test_torchscript(name: str, mark: Path):
    path = save_script(mark.with_name("a.pt"))
    rewrite(path, {"data.pkl": pickle.dumps(PAYLOADS[name](mark), protocol=2)})
    assert f"holds '{name}'" in refusal(path)


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_other_pickle_protocols(protocol: int, new: bool, mark: Path):
    path = mark.with_name("a.pt")
    content = {"epoch": Payload(os.system, f"touch {mark}")}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    line = refusal(path)
    # the first pickles of a legacy file, plain numbers, already give away its protocol
    assert f"'{os.system.__module__}.system'" in line if new or protocol == 3 else "torch.save" in line


def test_a_plain_pickle(mark: Path):
    path = mark.with_name("a.pkl")
    path.write_bytes(pickle.dumps(Payload(os.system, f"touch {mark}")))
    assert "not one of torch.save" in refusal(path)


def test_a_shard_of_an_index(mark: Path):
    torch.save({"w": Payload(os.system, f"touch {mark}")}, mark.with_name("a.bin"))
    index = mark.with_name("a.index.json")
    index.write_text('{"weight_map": {"w": "a.bin"}}')
    assert f"'{os.system.__module__}.system'" in refusal(index)


def test_a_whole_module_is_refused_by_its_class(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "holds 'torch.nn.modules.linear.Linear'" in refusal(tmp_path / "a.pt")


def test_a_protocol_that_torch_does_not_use_says_so(tmp_path: Path):
    torch.save(state_dict(), tmp_path / "a.pt", pickle_protocol=4)
    assert "save it again without choosing a pickle protocol" in refusal(tmp_path / "a.pt")


def lightning_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch, **extra: object) -> None:
    """Save what Lightning wrote for taming's models, with classes and OmegaConf's objects that are gone afterwards."""
    with monkeypatch.context() as patch:

        def fake(module: str, name: str, base: type = object) -> type:
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                package = ".".join(parts[:end])
                if package not in sys.modules:
                    patch.setitem(sys.modules, package, types.ModuleType(package))
            made = type(name, (base,), {"__module__": module})
            patch.setattr(sys.modules[module], name, made, raising=False)
            return made

        def settings(kind: type, **state: object) -> object:
            made = object.__new__(kind)
            made.__dict__.update(state)
            return made

        model_checkpoint = fake("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        early_stopping = fake("pytorch_lightning.callbacks.early_stopping", "EarlyStopping")
        old_attributes = fake("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
        node = fake("omegaconf.nodes", "AnyNode")
        metadata = settings(fake("omegaconf.base", "ContainerMetadata"), ref_type=Any, object_type=dict, key=None)
        channels = settings(
            fake("omegaconf.listconfig", "ListConfig"),
            _metadata=metadata,
            _content=[settings(node, _val=1), settings(node, _val=2)],
        )
        config = settings(
            fake("omegaconf.dictconfig", "DictConfig"),
            _metadata=metadata,
            _parent=None,
            _content={"n_embed": settings(node, _val=1024), "ch_mult": channels},
        )
        callbacks = {
            model_checkpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": Path("runs") / "last.ckpt"},
            early_stopping: {"wait_count": 0},
        }
        content = {
            "epoch": 12,
            "global_step": 3400,
            "pytorch-lightning_version": "1.0.8",
            "state_dict": state_dict(),
            "callbacks": callbacks,
            "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(2)}}, "param_groups": []}],
            "hparams_type": old_attributes,
            "hyper_parameters": old_attributes({"lr": 0.1, "model": config, "inner": AttributeDict(a=1)}),
            "counts": collections.Counter("aab"),
            "kinds": collections.defaultdict(list, {"x": 1}),
            "args": argparse.Namespace(image_size=256),
            **extra,
        }
        torch.save(content, path)
    assert "omegaconf.base" not in sys.modules


def test_a_lightning_checkpoint_is_read_without_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lightning_checkpoint(tmp_path / "last.ckpt", monkeypatch)
    before = set(torch.serialization.get_safe_globals())
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert_equal(found.tensors, state_dict())
    assert found.extras == {"epoch": 12, "global_step": 3400, "pytorch-lightning_version": "1.0.8"}
    # the classes allowed for one file are not left allowed for others
    assert set(torch.serialization.get_safe_globals()) == before


@every_payload
def test_a_lightning_checkpoint_with_a_payload(name: str, mark: Path, monkeypatch: pytest.MonkeyPatch):
    path = mark.with_name("last.ckpt")
    lightning_checkpoint(path, monkeypatch, lr_schedulers=[{"lambda": PAYLOADS[name](mark)}])
    assert f"holds '{name}'" in refusal(path)


def test_a_class_of_the_same_module_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("pytorch_lightning")
    trainer = type("Trainer", (), {"__module__": "pytorch_lightning"})
    module.Trainer = trainer  # pyright: ignore
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", module)
        torch.save({"w": torch.ones(1), "trainer": trainer()}, tmp_path / "a.pt")
    assert "holds 'pytorch_lightning.Trainer'" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("place", ["beside", "within"])
@pytest.mark.parametrize("leaf", [1, torch.ones(1)])
def test_endlessly_nested_dicts_cost_nothing(place: str, leaf: object, tmp_path: Path):
    nested: dict[str, Any] = {"leaf": leaf}
    for _ in range(100):  # 2 to the power of 100 leaves, in a file of some kilobytes
        nested = {"a": nested, "b": nested}
    content = {"state_dict": state_dict(), "x": nested} if place == "beside" else {**state_dict(), "x": nested}
    torch.save(content, tmp_path / "a.pt")
    if place == "beside":
        assert_equal(read_checkpoint(tmp_path / "a.pt").tensors, state_dict())
    else:
        assert "one of its dicts appears twice" in refusal(tmp_path / "a.pt")


# Handwritten pickles that name only known classes, but would change those or use up the memory.
BY_HAND = {
    "state of a builder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "attribute of a builder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__name__K\x01s\x86b.",
    "attribute of a class": b"\x80\x02ccollections\nOrderedDict\nN}X\x04\x00\x00\x00evilK\x01s\x86b.",
    "attribute of Counter": b"\x80\x02ccollections\nCounter\nN}X\x04\x00\x00\x00evilK\x01s\x86b.",
    "attribute of a stand-in": b"\x80\x02cargparse\nNamespace\nN}X\x04\x00\x00\x00evilK\x01s\x86b.",
    "far memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "long text": b"\x80\x02X\xff\xff\xff\x7fa.",
    "empty stack": b"\x80\x020.",
    "extension": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02}",
    "not a pickle": b"weights",
}


@pytest.mark.parametrize("kind", ["zip", "script", "legacy"])
@pytest.mark.parametrize("name", list(BY_HAND))
def test_a_handwritten_pickle_is_refused(tmp_path: Path, kind: str, name: str):
    path = tmp_path / "a.pt"
    if kind == "script":
        save_script(path)
        rewrite(path, {"data.pkl": BY_HAND[name]})
    elif kind == "zip":
        torch.save(state_dict(), path)
        rewrite(path, {"data.pkl": BY_HAND[name]})
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        assert content.count(b"\x80\x02}q\x00.\x80\x02]q\x00.") == 1
        path.write_bytes(content.replace(b"\x80\x02}q\x00.\x80\x02]q\x00.", BY_HAND[name] + b"\x80\x02]q\x00."))
    refusal(path)
    assert not hasattr(collections.Counter, "evil")


def test_the_state_of_a_storage_cannot_be_changed(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    # the storage, then instructions to make it longer, in place of the tensor that it belongs to
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    rewrite(path, {"data.pkl": b"\x80\x02" + storage + b"}X\x05\x00\x00\x00numelK\xffsb."})
    assert "state of something that has none" in refusal(path)
