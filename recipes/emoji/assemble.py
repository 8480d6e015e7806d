"""Assembles the built-in pack from the run folders of the emoji recipes.

    python recipes/emoji/assemble.py runs/emoji emoji.parquet --out src/codebrush/packs/emoji

Uses the run folders of MEMBERS. pack.json records each stage's plan, its last figures and the seconds it ran, the
data's hash, the commit and the machine. Models and records of stages whose run folder no longer exists are those of an
earlier pack (--earlier). `card.py` then measures the pack and writes its card.
"""

import argparse
import dataclasses
import hashlib
import json
import platform
import subprocess
from pathlib import Path

import tokenizers
import torch
from curves import curve
from tokenizers import normalizers

from codebrush.models.captioner import Captioner
from codebrush.models.clip import CLIP
from codebrush.models.flow_transformer import FlowTransformer
from codebrush.models.pretrained import PretrainedModel
from codebrush.models.prior import Prior
from codebrush.models.translator import Translator
from codebrush.models.upscaler import Upscaler
from codebrush.models.vqgan import VQGAN
from codebrush.pack.pack import open_pack
from codebrush.pack.writing import PackMembers, write_pack
from codebrush.text.tokenizer import Tokenizer
from codebrush.training.dataset import SourceConfig, load_captioned
from codebrush.training.engine.reporting import METRICS
from codebrush.training.make_bank import make_bank
from codebrush.training.run_folder import MODEL_FOLDER, is_done, read_plan
from codebrush.version import __version__

PARTS = 11  # the captioner's training had this many
RUNS = (
    *("clip-without-noto", "clip", "clip-all-styles", "clip-more-icons", "vqgan", "vqgan-128", "vqgan-decoder"),
    "vqgan-decoder-2",
    *("flow", "painter-flow", "painter-flow-2", "painter-flow-3"),
    "scorer",
    *("captioner", *(f"captioner-{part}" for part in range(2, PARTS + 1)), "upscaler", "upscaler-2"),
    *("prior", "translator"),
)
MEMBERS = {  # of the pack, and the run whose model each is
    "clip": "clip-more-icons",
    "vqgan": "vqgan-decoder-2",
    "flow": "painter-flow-3",
    "scorer": "scorer",
    "captioner": f"captioner-{PARTS}",
    "upscaler": "upscaler-2",
    "prior": "prior",
    "translator": "translator",
}
STYLES = ("fluent-3d", "fluent-color", "fluent-flat", "noto", "twemoji")  # that prompts may ask for
CONCEPTS = 1757  # the bank has a picture of each; a pack of 40 MB has no room for more
LICENCE = (
    "weights Apache-2.0; trained on Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0), Fluent Emoji (MIT) and others named "
    "in NOTICE (CC BY 3.0 and 4.0, MIT, ISC, Apache-2.0, CC0)"
)
ARTICLE = r"\A(?i:an?|the) (?!button)(?=\S)"  # "A button (blood type)" is a label
DEFAULTS = {"cfg": 4.0}


def without_article(tokenizer: Tokenizer) -> Tokenizer:
    """Make the tokenizer drop a leading article. Labels have none, and a painter, which reads positions, treats "a
    rocket" as something else than "rocket"."""
    if json.dumps(ARTICLE) in tokenizer.backend.to_str():  # that of an earlier pack
        return tokenizer
    leave_out = normalizers.Replace(tokenizers.Regex(ARTICLE), "")
    assert tokenizer.backend.normalizer is not None
    tokenizer.backend.normalizer = normalizers.Sequence([leave_out, tokenizer.backend.normalizer])
    return tokenizer


def runs_with(upscaler: str) -> list[str]:
    """The runs of a pack whose upscaler is that of the run `upscaler`, the first or the second."""
    return [run for run in RUNS if run != MEMBERS["upscaler"] or run == upscaler]


def run_facts(folder: Path) -> dict:
    """Plan, last figures, loss and training seconds of one run folder."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    steps = [0] + [line["step"] for line in lines]
    seconds = sum((b - a) / line["steps_per_second"] for a, b, line in zip(steps, steps[1:], lines, strict=False))
    plan = dataclasses.asdict(read_plan(folder))
    if "from" in plan["facts"]:
        place = Path(plan["facts"]["from"])  # only the name is published, not where the folder was
        plan["facts"]["from"] = place.parent.name if place.name == MODEL_FOLDER else place.name
    loss = curve(lines, f"{plan['stage']}_loss")
    return {"plan": plan, "last": lines[-1], "seconds": round(seconds), "curve": loss}


def trained_model(runs: Path, run: str, member: str, earlier: Path | None) -> Path:
    """Where the model of a run lies: in its run folder, or if that is gone in an earlier pack."""
    place = runs / run / MODEL_FOLDER
    if place.is_dir() or earlier is None or not open_pack(earlier).has(member):
        return place
    return open_pack(earlier).member(member)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--upscaler", default=MEMBERS["upscaler"], help="its run: upscaler where there are no larger drawings"
    )
    parser.add_argument("--earlier", type=Path, help="pack with models and records of the stages without run folder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    members = MEMBERS | {"upscaler": options.upscaler}
    earlier = open_pack(options.earlier).info["provenance"]["stages"] if options.earlier else {}
    runs = runs_with(options.upscaler)
    logged = {run for run in runs if is_done(options.runs / run) and (options.runs / run / METRICS).is_file()}
    if gone := [run for run in runs if run not in logged | earlier.keys()]:
        parser.error(f"{options.runs} has no {', '.join(gone)}: name a pack that has them with --earlier")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    trained = {member: trained_model(options.runs, run, member, options.earlier) for member, run in members.items()}
    clip = CLIP.from_pretrained(trained["clip"])
    rows = SourceConfig(str(options.data), "train", ("skin_tone is null",), ("{label}, {style} style",), "concept")
    known = load_captioned(rows.open(), clip.image_size, options.runs / "cache")
    models: dict[str, PretrainedModel] = {
        "clip": clip,
        "vqgan": VQGAN.from_pretrained(trained["vqgan"]),
        "flow": FlowTransformer.from_pretrained(trained["flow"]),
        "scorer": CLIP.from_pretrained(trained["scorer"]),
        "captioner": Captioner.from_pretrained(trained["captioner"]),
        "upscaler": Upscaler.from_pretrained(trained["upscaler"]),
        "bank": make_bank(clip, known, most=CONCEPTS),
        "prior": Prior.from_pretrained(trained["prior"]),
        "translator": Translator.from_pretrained(trained["translator"]),
    }
    tokenizers = {
        **{name: without_article(Tokenizer.from_pretrained(trained[name])) for name in ("clip", "scorer")},
        "captioner": Tokenizer.from_pretrained(trained["captioner"]),
    }
    pack = write_pack(
        options.out,
        PackMembers(models, tokenizers),
        name="emoji",
        version=__version__,
        licence=LICENCE,
        defaults=DEFAULTS,
        extras={
            "styles": {"text": "{prompt}, {style} style", "names": list(STYLES)},
            "known_texts": True,  # measured by open_words.py
        },
        provenance={
            "recipe": "recipes/emoji",
            "commit": commit,
            "data": options.data.name,
            "data_sha256": hashlib.sha256(options.data.read_bytes()).hexdigest(),
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, 2 CPU cores with AVX-512 and bf16, no GPU",
            "stages": {run: run_facts(options.runs / run) if run in logged else earlier[run] for run in runs},
        },
    )
    size = sum(path.stat().st_size for path in pack.folder.rglob("*.safetensors"))
    print(f"{pack.folder}: {size / 1e6:.1f} MB of weights, hash {pack.hash[:12]}")


if __name__ == "__main__":
    main()
