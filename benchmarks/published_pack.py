"""Time and memory of a guided run at published sizes, from files in the published layouts to a finished picture.

    python benchmarks/published_pack.py [--steps 5] [--threads 2] [--folder DIR]

Writes OpenAI's CLIP ViT-B/32 (float16) and Taming's f16 VQGAN of 16,384 codes with random weights in their own layouts,
downloads them from there as `codebrush packs download` would, and runs `codebrush generate --method guide` on the pack:
256x256, 32 views. Prints the seconds and the peak memory of each part, and the seconds of a step.
`benchmarks/guided_step.py` compares such a step with a plain one.
"""

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codebrush.conversion import openai, taming
from codebrush.conversion.state_dict_rules import extract
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.text_transformer import TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_taming_f16
from codebrush.text.tokenizer import Tokenizer

VIEWS, SIZE = 32, "256x256"
CONTEXT = 77
IMAGE = VisionTransformerConfig(224, 32, 768, 12, 12, 512, activation="quick_gelu")
TEXT = TextTransformerConfig(49408, CONTEXT, 512, 12, 8, 512, activation="quick_gelu")


def write_published(folder: Path) -> None:
    """Write the two checkpoints and a tokenizer (the built-in one, as OpenAI's vocabulary is not in the package)."""
    torch.manual_seed(0)
    clip = CLIP.from_config(CLIPConfig(IMAGE, TEXT))
    tensors: dict[str, Tensor] = {name: value.half() for name, value in extract(clip, openai.rules({})).items()}
    torch.save(tensors | {name: torch.tensor(0) for name in openai.SCALARS}, folder / "ViT-B-32.pt")
    Tokenizer.wordpiece().save(folder)
    state = extract(VQGAN(vqgan_taming_f16()), taming.VQ_RULES)
    torch.save({"state_dict": state, "epoch": 1}, folder / "last.ckpt")


def write_catalogue(folder: Path) -> Path:
    """Write a catalogue whose files are those in `folder`."""

    def files(*names: str) -> list[dict[str, Any]]:
        found = []
        for name in names:
            content = (folder / name).read_bytes()
            about = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            found.append({"path": name, **about, "mirrors": [str(folder / name)]})
        return found

    about = {"licence": "MIT", "paper": None}
    clip = files("ViT-B-32.pt", "tokenizer.json", "tokenizer_config.json")
    models = {
        "random-clip": {"kind": "clip", "title": "random CLIP", **about, "files": clip},
        "random-vqgan": {"kind": "vqgan", "title": "random VQGAN", **about, "files": files("last.ckpt")},
    }
    members = {"clip": "random-clip", "vqgan": "random-vqgan"}
    packs = {"random": {"title": "random weights", "image_size": 256, "members": members}}
    catalogue = folder / "catalogue.yaml"
    catalogue.write_text(json.dumps({"models": models, "packs": packs}))  # JSON is YAML
    return catalogue


def measured(code: str, environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, peak memory in MiB and output of a Python process that runs `code`."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {code}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, output


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        environment = os.environ | {"CODEBRUSH_HOME": str(folder / "home"), "OMP_NUM_THREADS": str(options.threads)}
        write_published(folder)
        catalogue = write_catalogue(folder)
        install = (
            "import sys; from pathlib import Path; from codebrush.hub.catalogue import load_catalogue;"
            "from codebrush.hub.install import install;"
            f"install('random', load_catalogue(Path({str(catalogue)!r})), Path({str(folder / 'home')!r}))"
        )
        seconds, memory, _ = measured(install, environment)
        stored = sum(file.stat().st_size for file in (folder / "home").rglob("*") if file.is_file()) / 2**20
        print(f"install: {seconds:.1f} s, peak {memory:.0f} MiB, {stored:.0f} MiB on disk")
        code = (
            "import json, time; from codebrush import Codebrush; marks = [];"
            "run = Codebrush.from_pretrained('random').guide('a dog on the beach, unreal engine',"
            f" steps={options.steps}, cutouts={VIEWS}, size={SIZE!r}, folder={str(folder / 'run')!r});"
            "[marks.append(time.perf_counter()) for step in run];"
            "print(json.dumps({'marks': marks, 'size': run.results[0].image.size}))"
        )
        seconds, memory, output = measured(code, environment)
        marks, size = (json.loads(output)[name] for name in ("marks", "size"))
        steps = [after - before for before, after in itertools.pairwise(marks)]
        print(
            f"guided run of {options.steps} steps: {seconds:.1f} s with loading, peak {memory:.0f} MiB, picture {size}"
        )
        print(f"a step after the first: {statistics.median(steps):.2f} s (from {min(steps):.2f} to {max(steps):.2f})")
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
