"""Writes drawn scenes with captions and questions as a folder to train on."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from codebrush.data.sources.metadata import write_metadata
from codebrush.data.synthetic.outlines import COLOURS
from codebrush.data.synthetic.questions import scene_questions
from codebrush.data.synthetic.shapes import scene
from codebrush.errors import UsageError
from codebrush.files import atomic_folder
from codebrush.progress import Progress

QUESTIONS = 1  # the number of the random stream of a scene's questions


def write_shapes(
    folder: str | Path,
    count: int,
    size: int = 64,
    seed: int = 0,
    objects: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write scenes 0 to count - 1 as a folder that `open_source` reads: pictures, and metadata.jsonl with captions,
    questions and answers.

    Returns how many were written.

    Raises:
        UsageError: if `count` is below 1, or another number out of range.
        DataError: if the folder exists and is not empty.
        CodebrushError: if it cannot be written.
    """
    if count < 1:
        raise UsageError("the number of scenes must be 1 or more")
    with atomic_folder(folder) as part:
        rows = []
        (part / "images").mkdir()
        for index in range(count):
            drawn = scene(seed, index, size, objects)
            name = f"images/{index:06d}.png"
            rng = np.random.default_rng(np.random.SeedSequence([seed, index, QUESTIONS]))
            questions = scene_questions(drawn.objects, drawn.background, size, tuple(COLOURS), rng)
            drawn.image.save(part / name)
            rows.append(
                {
                    "file_name": name,
                    "caption": drawn.caption,
                    "captions": drawn.captions,
                    "background": drawn.background,
                    "count": len(drawn.objects),
                    "objects": [asdict(each) for each in drawn.objects],
                    "questions": [each._asdict() for each in questions],
                }
            )
            if progress is not None:
                progress(index + 1, count)
        write_metadata(part, rows)
    return count
