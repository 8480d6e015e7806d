"""A limit on memory is kept by the process as the system counts it, and changes no gradient."""

import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from codebrush import Codebrush
from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.vqgan import VQGAN, VQGANConfig
from codebrush.process_memory import MIB, peak_memory
from packs import micro_clip, micro_tokenizer, micro_transformer, write_micro_pack


@pytest.fixture(scope="module")
def heavy_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack whose decoder and CLIP take much more memory for their activations than for their weights."""
    image = VisionTransformerConfig(96, 8, 32, 12, 2, 24)
    clip = CLIP.from_config(CLIPConfig(image, micro_clip().config.text)).eval()
    vqgan = VQGAN(VQGANConfig(32, 16, (1, 1, 2), norm_groups=8, latent_channels=16, codebook_size=128)).eval()
    folder = tmp_path_factory.mktemp("heavy") / "pack"
    return write_micro_pack(
        folder, clip=clip, vqgan=vqgan, tokenizer=micro_tokenizer(), transformer=micro_transformer()
    )


def guide(pack: Path, room: int | None, parent: Connection) -> None:
    """A process of its own guides one step in `room` MiB more than it takes after loading, and says what it took."""
    torch.set_num_threads(1)
    brush = Codebrush.from_pretrained(pack, device="cpu")
    _ = brush.vqgan, brush.clip, brush.tokenizer
    loaded = peak_memory()
    limit = None if room is None else loaded + room * MIB
    options: dict[str, Any] = {} if limit is None else {"max_memory": str(limit)}
    run = brush.guide("a red circle", size="256x256", steps=1, cutouts=64, show_every=1, precision="float32", **options)
    (loss,) = [step.losses["loss"] for step in run]
    plan = run.results[0].manifest["plan"]
    parent.send({"limit": limit, "loaded": loaded, "peak": peak_memory(), "plan": plan, "loss": loss})


def measure(processes: ForkServerContext, pack: Path, room: int | None) -> dict[str, Any]:
    ours, its = processes.Pipe()
    process = processes.Process(target=guide, args=(pack, room, its))
    process.start()
    its.close()
    said = ours.recv()
    process.join()
    return said


@pytest.fixture(scope="module")
def unlimited(heavy_pack: Path, processes: ForkServerContext) -> dict[str, Any]:
    return measure(processes, heavy_pack, None)


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say what a process uses")
@pytest.mark.parametrize("room", [200, *(pytest.param(room, marks=pytest.mark.long) for room in (350, 700))])
def test_the_limit_is_kept(
    heavy_pack: Path, unlimited: dict[str, Any], room: int, processes: ForkServerContext
) -> None:
    assert unlimited["peak"] - unlimited["loaded"] > 400 * MIB  # or there would be nothing to keep to
    kept = measure(processes, heavy_pack, room)
    assert kept["peak"] <= 1.1 * kept["limit"]
    assert 1 <= kept["plan"]["micro_batch"] <= 64
    assert (kept["plan"]["micro_batch"] == 64) == (room == 700)
    if not kept["plan"]["decode"]["tile"]:
        assert kept["loss"] == pytest.approx(unlimited["loss"], rel=1e-3)


def test_too_little_is_refused(micro_pack: Path) -> None:
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.raises(UsageError, match=r"max_memory of 20 MiB does not suffice.*give at least \d+MiB"):
        list(brush.guide("a dog", steps=1, max_memory="20MiB"))
    with pytest.raises(UsageError, match="max_memory must be a size"):
        GuideOptions(max_memory="plenty")


def test_the_peak_is_in_bytes() -> None:
    assert 50 * MIB < peak_memory() < 64 * 1024 * MIB
