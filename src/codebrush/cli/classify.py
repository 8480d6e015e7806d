"""`codebrush classify`: pictures and labels in; which label each picture fits, with probabilities, out."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags import given_flags, refuse
from codebrush.cli.output import print_json
from codebrush.cli.pictures import picture_files
from codebrush.errors import PackError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.pipeline import Codebrush

WORDS = ("labels", "labels_file", "template", "temperature")  # what a probe has no use for


def classify(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    labels: Annotated[str | None, typer.Option(help='Like cat,dog,car; "cat, asleep" in quotes is one.')] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with one label a line.")] = None,
    probe: Annotated[Path | None, typer.Option(help="What codebrush probe has learned, instead of labels.")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='A sentence for the labels, like "a photo of a {}"; several are averaged.')
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Over 1 is less sure, under 1 more.  [the pack's own, else 1]")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many labels to tell.")] = 5,
    pack: Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")] = "emoji",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Say which label each picture fits best, and how surely. Pictures that cannot be read are named and skipped."""
    start = time.perf_counter()
    given = given_flags(context)
    if probe is not None:
        refuse(given, WORDS, "cannot go with --probe: a probe has labels and a sureness of its own")
    elif labels is not None and labels_file is not None:
        raise UsageError("--labels-file cannot go with --labels: give one of them")
    elif labels is None and labels_file is None:
        raise UsageError("there is nothing to choose from: give --labels cat,dog,car or --labels-file, or --probe")
    files, skipped = picture_files(images)
    choice = _probed(probe) if probe is not None else _told(context.params)  # what is wrong is said before models load
    from codebrush.data.preprocess import pixels_for
    from codebrush.errors import ImageError
    from codebrush.pipeline import Codebrush

    brush = Codebrush.from_pretrained(pack)
    rank, about = choice(brush)
    results: list[dict[str, Any]] = []
    for path in files:
        try:
            pixels = pixels_for(brush.clip, [path])  # (1, 3, S, S)
        except ImageError as error:
            print(f"codebrush: skipped {error}", file=sys.stderr)
            skipped.append({"path": str(path), "reason": str(error).removeprefix(f"{path}: ")})
            continue
        best = rank(brush.clip.encode_image(pixels.to(brush.device)))[0][:top_k]
        found = [{"label": label, "probability": probability} for label, probability in best]
        results.append({"path": str(path), "labels": found})
    if not results:
        raise ImageError("none of the pictures could be read: check their paths")
    seconds = round(time.perf_counter() - start, 3)
    report = {"results": results, "skipped": skipped, **about, "seconds": seconds}
    print_json(report) if json_output else _print(results)


Rank = Callable[["Tensor"], list[list[tuple[str, float]]]]
Choice = Callable[["Codebrush"], tuple[Rank, dict[str, Any]]]  # what ranks embeddings, and what the report says of it


def _told(given: dict[str, Any]) -> Choice:
    """Ranks embeddings by the words of the labels. What is wrong with the flags is a UsageError."""
    from codebrush.text.prompts import ZERO_SHOT_TEMPLATES
    from codebrush.understanding.classification import (
        ZeroShotClassifier,
        check_labels,
        check_temperature,
        check_templates,
        pack_temperature,
        read_label_file,
        read_labels,
    )

    file, temperature = given["labels_file"], given["temperature"]
    labels = read_labels(given["labels"]) if file is None else read_label_file(file)
    sentences = tuple(given["template"] or ZERO_SHOT_TEMPLATES)
    check_labels(labels)
    check_templates(sentences)
    if temperature is not None:
        check_temperature(temperature)

    def choice(brush: "Codebrush") -> tuple[Rank, dict[str, Any]]:
        heat = pack_temperature(brush.pack.info) if temperature is None else temperature
        classifier = ZeroShotClassifier(brush.clip, brush.tokenizer, labels, sentences, heat)
        return classifier.rank, {"temperature": heat, "templates": list(sentences)}

    return choice


def _probed(path: Path) -> Choice:
    """Ranks embeddings by what a probe has learned of those of the same CLIP."""
    from codebrush.pack.pack import clip_hash
    from codebrush.understanding.probe import LinearProbe

    learned = LinearProbe.load(path)

    def choice(brush: "Codebrush") -> tuple[Rank, dict[str, Any]]:
        if learned.clip != clip_hash(brush.pack.member("clip")):
            raise PackError(
                f"{path} was made with the CLIP of another pack than '{brush.pack.name}': "
                f"name that with --pack, or make a probe for this one"
            )
        return learned.to(brush.device).rank, {"probe": str(path)}

    return choice


def _print(results: list[dict[str, Any]]) -> None:
    for result in results:
        print(result["path"])
        for each in result["labels"]:
            print(f"  {each['probability']:6.1%}  {each['label']}")
