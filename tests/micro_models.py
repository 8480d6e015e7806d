"""What the learning tests train: recipes of a micro CLIP, VQGAN and both painters, and scenes of one drawn shape;
each set and each model is made once for all processes."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock
from PIL import Image, ImageDraw

from codebrush.data.synthetic.shapes import Scene, scene
from codebrush.models.pretrained import PretrainedModel
from codebrush.training.dataset import Captioned, SourceConfig, load_captioned
from codebrush.training.engine.loop_config import LoopConfig
from codebrush.training.run_stage import run_stage
from codebrush.training.stage import Materials, StagePlan
from codebrush.training.tasks.augmentation import Augmentation
from codebrush.training.tasks.clip import CLIPRecipe
from codebrush.training.tasks.code_transformer import TransformerRecipe
from codebrush.training.tasks.flow import FlowRecipe
from codebrush.training.tasks.vqgan import VQGANRecipe

SIZE = 32
COLOURS = ("red", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "cross")
LABELS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
SEEN, UNSEEN = 0, 1  # seeds of the scenes trained on and of those judged by

CLIP_RECIPE = CLIPRecipe(
    image_size=SIZE, image="resnet", width=16, blocks=(1, 1, 1, 1), heads=4,
    text_width=64, text_layers=1, text_heads=2, embed_dim=64, learning_rate=3e-3,
)  # fmt: skip
VQGAN_RECIPE = VQGANRecipe(
    image_size=SIZE, channels=16, channel_multipliers=(1, 2, 2), latent_channels=32, code_dim=8, codebook_size=128,
    l2=10.0, perceptual=0.0, adversarial=0.0, learning_rate=3e-3, augmentation=Augmentation(),
)  # fmt: skip
TRANSFORMER_RECIPE = TransformerRecipe(width=96, layers=2, heads=4, text_length=8, dropout=0.0, learning_rate=3e-3)

FLOW_RECIPE = FlowRecipe(width=96, layers=2, heads=3, stem=32, text_length=4, learning_rate=6e-3)


def single_shapes(seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a series whose one object has our colours and shapes."""
    series = (scene(seed, index, SIZE, objects=1) for index in itertools.count())
    return itertools.islice((each for each in series if label_of(each) in LABELS), count)


def label_of(drawn: Scene) -> str:
    return f"{drawn.objects[0].colour} {drawn.objects[0].shape}"


def around(drawn: Scene) -> Image.Image:
    """A mask of the object's box and a little more."""
    mask = Image.new("L", drawn.image.size)
    left, top, right, bottom = drawn.objects[0].box
    ImageDraw.Draw(mask).rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=255)
    return mask


def loop(steps: int, batch_size: int) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch_size=batch_size, warmup=20, ema_decay=0.98, threads=1,
        log_every=steps // 4, checkpoint_every=steps, preview_every=0,
    )  # fmt: skip


def scene_set(
    folder: Path, scenes: Iterable[tuple[Scene, dict[str, str]]], captions: tuple[str, ...], group: str
) -> Captioned:
    """Scenes with their columns as a folder of captioned pictures, which the first process writes, read back as any
    source is."""
    with FileLock(f"{folder}.lock"):
        if not (folder / "metadata.jsonl").exists():
            folder.mkdir(parents=True, exist_ok=True)
            rows = []
            for index, (drawn, cells) in enumerate(scenes):
                drawn.image.save(folder / f"{index}.png")
                rows.append({"file_name": f"{index}.png", **cells})
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "metadata.jsonl").write_text(lines)  # last: a folder with it is whole
        source = SourceConfig(str(folder), captions=captions, group=group)
        return load_captioned(source.open(), SIZE, folder.parent / "cache")


def train_once(
    plan: StagePlan, materials: Materials, folder: Path, start: PretrainedModel | None = None
) -> PretrainedModel:
    """The model of a plan, read from `folder`: the first process that asks trains it there, others wait for it."""
    with FileLock(f"{folder}.lock"):
        run_stage(plan, materials, folder, resume=True, start=start)
        return run_stage(plan, materials, folder, resume=True)
