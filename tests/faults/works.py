"""The commands that are disturbed: their arguments, what they read, and what must come of them."""

import io
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from campaign import Work
from PIL import ImageOps
from safetensors.torch import load_file

from codebrush.data.decoding.images import decode_image
from codebrush.data.sources.captioned_images import open_source
from codebrush.data.synthetic.scene_folder import write_shapes
from codebrush.data.synthetic.shapes import scene
from codebrush.models.upscaler import Upscaler, UpscalerConfig
from packs import write_micro_pack
from rude_server import RudeServer

LOOP = {
    "steps": 12,
    "batch_size": 4,
    "warmup": 2,
    "log_every": 2,
    "checkpoint_every": 2,
    "preview_every": 0,
    "threads": 1,
}
RECIPES: dict[str, dict[str, Any]] = {
    "vqgan": {
        "image_size": 16, "channels": 8, "channel_multipliers": [1, 1, 2], "norm_groups": 4, "latent_channels": 8,
        "code_dim": 4, "codebook_size": 64, "perceptual": 0, "adversarial_from": 0.6, "discriminator_channels": 8,
        "discriminator_layers": 1,
    },
    "clip": {
        "image_size": 32, "image": "resnet", "width": 8, "blocks": [1, 1, 1, 1], "heads": 2, "text_width": 16,
        "text_layers": 1, "text_heads": 2, "embed_dim": 8, "token_table": False,
    },
    "transformer": {"width": 16, "layers": 1, "heads": 2},
    "flow": {"width": 16, "layers": 1, "heads": 2, "stem": 8, "text_length": 4},
    "prior": {"width": 16, "layers": 1},
    "captioner": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 300},
    "upscaler": {"width": 8, "blocks": 1, "target_size": 32, "crop": 16, "perceptual": 0, "discriminator_channels": 8},
    "translator": {"channels": 8, "multipliers": [1, 2], "image_size": 16, "perceptual": 0},
}  # fmt: skip
READS = {  # stage: the models of a pack that it needs
    "transformer": ("clip", "vqgan"),
    "flow": ("clip", "vqgan"),
    "prior": ("clip",),
    "captioner": ("clip",),
    "translator": ("clip",),
}
NAMES = ("train-vqgan", "train-clip", "guide", "index", "curate", "upscale")  # those that bad places disturb
KILLED = tuple(dict.fromkeys([*NAMES, *(f"train-{stage}" for stage in RECIPES), "gather"]))


def weights(out: Path) -> dict[str, bytes]:
    state = load_file(out / "model" / "model.safetensors")
    return {name: value.numpy().tobytes() for name, value in state.items()}


def pictures(out: Path) -> list[bytes]:
    """The pixels of all pictures, in any order; enlarging again does not overwrite, so that some may be there twice."""
    return sorted({decode_image(path).tobytes() for path in out.rglob("*.png")})


def frames(out: Path) -> dict[str, bytes]:
    """The pixels of a guided run's pictures: those that it ends with, and those on the way."""
    return {str(path.relative_to(out)): decode_image(path).tobytes() for path in out.rglob("*.png")}


def curated(out: Path) -> Any:
    source = open_source(out)
    rows = [(source.row(row)["caption"], source.image(row).tobytes()) for row in range(len(source))]
    report = json.loads((out / "report.json").read_text())
    return sorted(rows), report["kept"], report["dropped"]


def indexed(out: Path) -> list[tuple[str, str]]:
    """The pictures of a database with their captions."""
    import lancedb

    rows: list[tuple[str, str]] = []
    database = lancedb.connect(out)
    for name in database.list_tables().tables:
        table = database.open_table(name).to_arrow()
        if "path" in table.column_names:
            assert table["embedding"].null_count == 0
            rows += zip(table["path"].to_pylist(), table["caption"].to_pylist(), strict=True)
    assert len(rows) == 40
    return sorted(rows)


def gathered(out: Path) -> list[tuple[str, bytes]]:
    """The captions and pixels of what was downloaded."""
    source = open_source(out)
    assert len(source) == 30
    return sorted((source.captions(row)[0], source.image(row).tobytes()) for row in range(len(source)))


def gather_work(folder: Path, server: RudeServer) -> Work:
    """Downloads thirty pictures of a local server, a few to a shard."""
    folder.mkdir()
    lines = ["url,caption"]
    for number in range(30):
        scene(0, number, 48).image.save(file := io.BytesIO(), "PNG")
        lines.append(f"{server.serve(f'/{number}.png', file.getvalue())},picture {number}")
    (folder / "list.csv").write_text("\n".join(lines))
    given = ("data", "gather", folder / "list.csv", "--allow-local", "--delay", 0.01, "--shard-rows", 4, "--out")
    return Work(lambda out: [*given, out], lambda out: [*given, out], gathered)


def write_looks(folder: Path) -> None:
    """Eight scenes, each as it is and in opposite colours, for a translator."""
    folder.mkdir()
    rows = []
    for number in range(8):
        drawn = scene(0, number, 32)
        for style, image in (("plain", drawn.image), ("opposite", ImageOps.invert(drawn.image))):
            image.save(folder / f"{number}-{style}.png")
            rows.append(
                {"file_name": f"{number}-{style}.png", "style": style, "label": drawn.caption, "thing": str(number)}
            )
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def make_works(folder: Path) -> dict[str, Work]:
    """Each command by its name but `gather`; what they read is written into `folder`."""
    torch.manual_seed(5)
    pack = write_micro_pack(folder / "pack", upscaler=Upscaler(UpscalerConfig(2, 8, 1)))
    write_shapes(folder / "shapes", 40, size=32, objects=1)
    for number in range(6):
        scene(0, number, 48).image.save(folder / f"{number}.png")
    small = [folder / f"{number}.png" for number in range(6)]
    works: dict[str, Work] = {}
    for stage, recipe in RECIPES.items():
        place, source = folder / f"{stage}.yaml", {"source": str(folder / "shapes")}
        if stage == "translator":
            write_looks(folder / "looks")
            source = {"source": str(folder / "looks"), "captions": ["{label}"], "group": "thing"}
        place.write_text(yaml.safe_dump({"stage": stage, "source": source, "recipe": recipe, "loop": LOOP}))
        models = [given for member in READS.get(stage, ()) for given in (f"--{member}", pack)]
        given = ("train", stage, place, *(models or ("--tokenizer", "bpe")), "--out")
        works[f"train-{stage}"] = Work(
            lambda out, given=given: [*given, out], lambda out, given=given: [*given, out, "--resume"], weights
        )
    guide = (
        "generate", "a red circle", "--method", "guide", "--n", 1, "--steps", 16, "--cutouts", 4, "--show-every", 5,
    )  # fmt: skip
    works["guide"] = Work(
        lambda out: [*guide, "--pack", pack, "--out", out],
        lambda out: ["generate", "--resume", out] if (out / "run.json").exists() else works["guide"].first(out),
        frames,
    )
    index = ("index", folder / "shapes", "--pack", pack, "--json", "--db")
    works["index"] = Work(lambda out: [*index, out], lambda out: [*index, out], indexed)
    by_ray = (*index[:-1], "--engine", "ray", "--workers", 1, "--db")
    ends_of_ray = (1, 15, -6)  # on SIGTERM, which Ray handles itself
    works["index-ray"] = Work(lambda out: [*by_ray, out], lambda out: [*by_ray, out], indexed, ends_of_ray)
    curate = ("curate", folder / "shapes", "--pack", pack, "--keep-top", 0.5, "--out")
    works["curate"] = Work(lambda out: [*curate, out], lambda out: [*curate, out], curated)
    upscale = ("upscale", *small, "--pack", pack, "--out")
    works["upscale"] = Work(lambda out: [*upscale, out], lambda out: [*upscale, out], pictures)
    return works
