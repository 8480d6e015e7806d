"""Whatever is cut off a checkpoint file or changed in it: it is read, or refused in one line, each time the same."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import mark_as_folder, pair, refusal, save_script, state_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from codebrush.conversion.checkpoints import read_checkpoint
from codebrush.errors import PackError

CONTENT = {"epoch": 3, "state_dict": state_dict()}
WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file(state_dict(), path),
    "zip": lambda path: torch.save(CONTENT, path),
    "legacy": lambda path: torch.save(CONTENT, path, _use_new_zipfile_serialization=False),
    "script": save_script,
}


@pytest.fixture(scope="module", params=list(WRITERS))
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / request.param
    WRITERS[request.param](path)
    expected = pair().state_dict() if request.param == "script" else state_dict()
    assert read_checkpoint(path).tensors.keys() == expected.keys()
    return path


@pytest.mark.parametrize("part", [0.0001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.9999])
def test_a_file_that_is_cut_off(intact: Path, tmp_path: Path, part: float):
    content = intact.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(len(content) * part)])
    refusal(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), flips=st.integers(1, 4))
def test_a_file_with_changed_bytes(intact: Path, tmp_path: Path, seed: int, flips: int):
    drawn = random.Random(seed)
    content = bytearray(intact.read_bytes())
    for _ in range(flips):
        content[drawn.randrange(len(content))] ^= drawn.randrange(1, 256)
    path = tmp_path / "changed.pt"
    path.write_bytes(content)
    first, second = outcome(path), outcome(path)
    assert first == second


def outcome(path: Path) -> str | dict[str, bytes]:
    """The line with which a file is refused, or the bytes of its tensors."""
    try:
        tensors = read_checkpoint(path).tensors
    except PackError:
        return refusal(path)
    assert tensors
    return {name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["data/0", "data.pkl", "version", "byteorder", ".data/serialization_id"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])  # a file of the second name is not mapped but copied
def test_an_entry_that_is_marked_as_a_folder_is_refused(tmp_path: Path, name: str, suffix: str):
    """torch's reader leaves the memory meant for such an entry as it is: each reading would give other weights."""
    path = tmp_path / f"model{suffix}"
    torch.save(CONTENT, path)
    mark_as_folder(path, name)
    assert f"its entry '{name}' is marked as a folder" in refusal(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"{"])
def test_a_file_of_random_bytes(start: bytes, content: bytes, tmp_path: Path):
    path = tmp_path / "random.pt"
    path.write_bytes(start + content)
    refusal(path)
