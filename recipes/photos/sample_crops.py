"""Cuts captioned crops out of the photographs that come with scikit-image and scikit-learn, to measure trainings with.

    pip download --no-deps scikit-image==0.25.2 scikit-learn==1.7.2
    python recipes/photos/sample_crops.py . --out sample-crops

600 crops of six photographs have split "train", 60 of two others "val". The built-in models have seen none of them.
"""

import argparse
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = {
    "train": {
        "skimage/data/astronaut.png": "an astronaut before a flag",
        "skimage/data/coffee.png": "a cup of coffee on a wooden table",
        "skimage/data/rocket.jpg": "a rocket at night",
        "skimage/data/hubble_deep_field.jpg": "galaxies in the sky",
        "sklearn/datasets/images/china.jpg": "a chinese temple",
        "skimage/data/motorcycle_left.png": "a motorcycle in a garage",
    },
    "val": {"skimage/data/chelsea.png": "a cat", "sklearn/datasets/images/flower.jpg": "a yellow flower"},
}
CROPS = {"train": 600, "val": 60}
LEAST_SIDE, SAVED_SIDE = 128, 256  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the two wheels")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    wheels = [zipfile.ZipFile(path) for path in sorted(given.wheels.glob("*.whl"))]
    given.out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for split, photos in PHOTOS.items():
        for number, (path, caption) in enumerate(photos.items()):
            rng = np.random.default_rng([1, split == "val", number])
            stored = next(wheel for wheel in wheels if path in wheel.namelist()).read(path)
            image = Image.open(io.BytesIO(stored)).convert("RGB")
            for _ in range(number, CROPS[split], len(photos)):
                name = f"{len(lines):05d}.jpg"
                crop(image, rng).save(given.out / name, quality=95)
                row = {"file_name": name, "caption": caption, "photo": path, "split": split}
                lines.append(json.dumps(row) + "\n")
    (given.out / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of the picture, as likely to show all of it as a small part, SAVED_SIDE pixels wide."""
    most = min(image.size)
    side = min(most, round(math.exp(rng.uniform(math.log(LEAST_SIDE), math.log(most)))))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    return image.resize((SAVED_SIDE, SAVED_SIDE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


if __name__ == "__main__":
    main()
