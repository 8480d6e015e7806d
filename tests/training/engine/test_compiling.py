import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

from codebrush.errors import TrainingError
from codebrush.training.engine.compiling import (
    compile_errors,
    compile_network,
    has_compiler,
    is_whole,
    remove_half_written,
)

LIBRARY = next(Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so"))
compiles = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler here")


class Layer(nn.Module):
    """Needs a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh() + 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of compiled code; what this process compiled is forgotten before and after."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget() -> None:
    from torch._inductor.utils import clear_caches

    torch._dynamo.reset()
    clear_caches()


def library(folder: Path, name: str, share: float) -> Path:
    """A compiled library, of which this share was written."""
    whole = LIBRARY.read_bytes()
    path = folder / name[:2] / f"{name}.main.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole[: round(len(whole) * share)])
    return path


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_library_that_was_cut_short_is_told_from_a_whole_one(share: float, tmp_path: Path):
    assert is_whole(library(tmp_path, "whole", 1))
    assert not is_whole(library(tmp_path, "short", share))
    (tmp_path / "blank").write_bytes(bytes(5000))  # of a disk that lost power
    assert not is_whole(tmp_path / "blank")
    (tmp_path / "mach-o").write_bytes(b"\xcf\xfa\xed\xfe" + bytes(5000))
    assert is_whole(tmp_path / "mach-o")


def test_only_what_nobody_is_writing_is_removed(cache: Path):
    whole, short, locked = (library(cache, name, share) for name, share in (("aa", 1), ("bb", 0.5), ("cc", 0.5)))
    (cache / "locks").mkdir()
    with FileLock(cache / "locks" / "cc.lock"):
        remove_half_written()
    assert whole.exists()
    assert not short.exists()
    assert locked.exists()


@compiles
def test_a_network_compiles_where_the_process_before_was_killed_while_linking(cache: Path):
    network, x = Layer(), torch.randn(4, 3)
    expected = network(x).detach()
    compile_network(network)
    network(x)
    libraries = list(cache.glob("*/*.main.so"))
    assert libraries
    for each in libraries:
        begun = each.read_bytes()[:100]
        each.unlink()  # this process still runs the whole one
        each.write_bytes(begun)
    forget()
    compile_network(network)
    with compile_errors(True):
        torch.testing.assert_close(network(x), expected)
    assert all(is_whole(each) for each in libraries)


@compiles
def test_a_compiler_that_fails_is_one_line_with_a_remedy(cache: Path):
    from torch._inductor import config

    network = Layer()
    with config.patch({"cpp.cxx": (shutil.which("false"),)}):
        compile_network(network)
        with pytest.raises(TrainingError) as raised, compile_errors(True):
            network(torch.randn(4, 3))
    assert str(cache) in str(raised.value)
    assert "set loop.compile to false" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_other_errors_of_a_step_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), compile_errors(True):
        _ = 1 / 0
    with pytest.raises(RuntimeError, match="of a step"), compile_errors(False):
        raise RuntimeError("of a step")
