"""Named sets of guidance options: a picture drawn first and improved, one from random codes, the classic notebook's.

Runs store what differs from the defaults of `GuideOptions`, so those never change; what is usual now stands here.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "sample": {"steps": 40, "init": "sample", "learning_rate": 0.03, "keep": "best"},
    "random": {"init": "random", "keep": "best", "score_patience": 60},
    "notebook": {
        "steps": 400, "batch_size": 1, "show_every": 10, "learning_rate": 0.5, "wd": 0.15, "optimizer": "AdamW",
        "noise": 0.22, "w1": 1.0, "w2": 0.1, "alpha": 1.0, "beta": 0.5, "distance": "cosine",
        "cutouts": 32, "crop_mean": 1.2, "crop_std": 0.3, "crop_min": 0.43, "crop_max": 1.9,
        "pad": 0.5, "beyond": "zeros", "flip": 0.5, "turn": 30.0, "shift": 0.2, "perspective": 0.0, "colour": 0.0,
        "shared_affine": True, "antialias": False, "init": "sine", "quantise": False, "clamp": False,
    },
    # Close to the sample, and views so disturbed that CLIP is hard to please by texture alone: see docs/log.md.
    "refine": {
        "steps": 40, "init": "sample", "init_weight": 10.0, "learning_rate": 0.05, "ema": 0.9,
        "turn": 20.0, "perspective": 0.3, "colour": 0.3, "noise": 0.3, "keep": "best",
    },
}  # fmt: skip
