"""A limit on memory is kept by the process as the system counts it, and changes no gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codebrush.errors import UsageError
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.process_memory import MIB, peak_memory
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.vqgan import VQGAN, VQGANConfig
from packs import micro_clip, micro_tokenizer, micro_transformer, write_micro_pack

SCRIPT = """
import json, resource, sys
import torch
from codebrush import Codebrush
brush = Codebrush.from_pretrained(sys.argv[1], device="cpu")
brush.vqgan, brush.clip, brush.tokenizer
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
limit = loaded + int(sys.argv[2]) * 2**20 if sys.argv[2] != "none" else None
options = {} if limit is None else {"max_memory": str(limit)}
run = brush.guide("a red circle", size="256x256", steps=1, cutouts=64, show_every=1, precision="float32", **options)
for step in run:
    pass
plan = run.results[0].manifest["plan"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"limit": limit, "loaded": loaded, "peak": peak, "plan": plan, "loss": step.losses["loss"]}))
"""


@pytest.fixture(scope="module")
def heavy_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack whose decoder and CLIP take much more memory for their activations than for their weights."""
    image = VisionTransformerConfig(96, 8, 96, 6, 2, 24)
    clip = CLIP.from_config(CLIPConfig(image, micro_clip().config.text)).eval()
    vqgan = VQGAN(VQGANConfig(32, 32, (1, 1, 2), norm_groups=8, latent_channels=16, codebook_size=128)).eval()
    folder = tmp_path_factory.mktemp("heavy") / "pack"
    return write_micro_pack(
        folder, clip=clip, vqgan=vqgan, tokenizer=micro_tokenizer(), transformer=micro_transformer()
    )


def measure(pack: Path, room: str) -> dict[str, Any]:
    # By way of a shell, which is small: the reported peak of a process includes that of the one that started it.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", SCRIPT, str(pack), room], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def unlimited(heavy_pack: Path) -> dict[str, Any]:
    return measure(heavy_pack, "none")


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say what a process uses")
@pytest.mark.parametrize("room", [200, pytest.param(350, marks=pytest.mark.long)])  # each run takes seconds
def test_the_limit_is_kept(heavy_pack: Path, unlimited: dict[str, Any], room: int) -> None:
    assert unlimited["peak"] - unlimited["loaded"] > 400 * MIB  # or there would be nothing to keep to
    kept = measure(heavy_pack, str(room))
    print(room, kept)
    assert kept["peak"] <= 1.1 * kept["limit"]
    assert 1 <= kept["plan"]["micro_batch"] < 64
    if not kept["plan"]["decode"]["tile"]:
        assert kept["loss"] == pytest.approx(unlimited["loss"], rel=1e-3)


def test_too_little_is_refused(micro_pack: Path) -> None:
    from codebrush import Codebrush

    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    with pytest.raises(UsageError, match=r"max_memory of 20 MiB does not suffice.*give at least \d+MiB"):
        list(brush.guide("a dog", steps=1, max_memory="20MiB"))
    with pytest.raises(UsageError, match="max_memory must be a size"):
        GuideOptions(max_memory="plenty")


def test_the_peak_is_in_bytes() -> None:
    assert 50 * MIB < peak_memory() < 64 * 1024 * MIB
