"""What every test starts from: one thread, no network, the same random numbers; and the option --order-seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import multiprocessing
import random
import signal
from collections.abc import Generator, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from packs import write_micro_pack
from storage_server import BUCKET, storage_server

gc.disable()  # until all tests are collected: what is imported stays
torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a suite that a script starts with & inherits that it is ignored
# What hypothesis draws is the same in each run: a change must not fail for what another's run might have drawn as well.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

OBJECTS_BETWEEN_COLLECTIONS = 20_000  # Python's 700 to 2,000 cost a tenth of the suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order-seed", type=int, help="shuffle the files, and the tests within each, by this seed")
    parser.addoption("--input-seed", type=int, default=0, help="the seed of the made-up inputs of tests/faults")


def pytest_report_header(config: pytest.Config) -> list[str]:
    order = config.getoption("order_seed")
    shuffled = [] if order is None else [f"random order: --order-seed {order}"]
    return [*shuffled, f"made-up inputs: --input-seed {config.getoption('input_seed')}"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python looks for cyclic garbage as rarely as a big program needs, and not at all among what was imported."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # pytest then brings together again what shares a parametrized fixture
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("order_seed")
    if seed is None:
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    draw = random.Random(seed)
    groups = list(files.values())
    draw.shuffle(groups)  # fixtures of a file are made once all the same
    for group in groups:
        draw.shuffle(group)
    items[:] = [item for group in groups for item in group]


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test draws the same global random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def input_seed(request: pytest.FixtureRequest) -> int:
    """The seed of made-up inputs; a test that fails says it. The same in each run but for `make test-long`."""
    return request.config.getoption("input_seed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger data beside the checkout; a test that asks for it is skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    """The address of an empty bucket; the environment has what reaches it."""
    with storage_server() as variables, pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def micro_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with random weights; tests that change it make a copy."""
    return write_micro_pack(tmp_path_factory.mktemp("packs") / "micro")


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Where real processes come from: each is forked off one that has done the slow imports and nothing else."""
    context = multiprocessing.get_context("forkserver")
    slow = ["codebrush.training.single_stage", "codebrush.previews", "datasets", "torch.utils.tensorboard"]
    slow += ["codebrush.pipeline", *(f"codebrush.cli.{name}" for name in ("train", "generate", "curate", "upscale"))]
    slow += ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
    slow += ["datasets.io.generator", "scipy.io"]  # by datasets, for the first source that is opened
    context.set_forkserver_preload(slow)
    return context
