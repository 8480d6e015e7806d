"""`codebrush classify`: probabilities of labels for pictures, zero-shot or from a linear probe."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrush.cli.flags.common import FitOption, JsonOption, PackOption, given_flags, refuse
from codebrush.cli.flags.pictures import each_readable, picture_files, seen_picture
from codebrush.cli.flags.sources import MaxPixelsOption
from codebrush.cli.output.printing import print_json, unread_entry
from codebrush.errors import PackError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from codebrush.pipeline import Codebrush

SHOWN = 10  # labels that are printed for a picture unless --top-k says how many
ZERO_SHOT_FLAGS = ("labels", "labels_file", "template", "temperature", "none")


def classify(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    labels: Annotated[
        str | None,
        typer.Option(help='Labels, separated by commas: cat,dog,car. Quote a comma: "cat, asleep",dog.'),
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Text file with one label on each line.")] = None,
    probe: Annotated[
        Path | None, typer.Option(help="File from codebrush probe, a trained classifier, instead of labels.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Prompt for the labels, like "a photo of a {}"; repeat to average several.  [built-in set]'),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Softmax temperature: above 1 is less confident, below 1 more.  [the pack's own, else 1]"),
    ] = None,
    none: Annotated[
        bool, typer.Option("--none", help='Add the answer "none of these", for pictures that fit other texts better.')
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", "-k", min=1, help="Number of labels to print for each picture.  [10; with --json all of them]"
        ),
    ] = None,
    fit: FitOption = None,
    max_pixels: MaxPixelsOption = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Classify pictures: the probability of each label.

    Pictures that cannot be read are named and skipped.
    """
    start = time.perf_counter()
    _check_flags(context)
    files, skipped = picture_files(images)
    # Wrong flags are reported before any model loads.
    make_classifier = _probe_classifier(probe) if probe is not None else _zero_shot_classifier(context.params)
    from codebrush.pipeline import Codebrush

    brush = Codebrush.from_pretrained(pack)
    rank, about = make_classifier(brush)
    rule = None if fit is None else fit.value

    def classified(_: int, path: Path) -> dict[str, Any]:
        picture, frame = seen_picture(brush.clip, path)
        ranking = rank(brush.embed_images([picture], rule))[0]
        count = len(ranking) if json_output and top_k is None else top_k or SHOWN
        return {"path": str(path), **frame, **_best(ranking, count)}

    results = each_readable(files, skipped, classified)
    seconds = round(time.perf_counter() - start, 3)
    report = {"results": results, "skipped": skipped, **about, "seconds": seconds}
    print_json(report) if json_output else _print(results)


def _check_flags(context: typer.Context) -> None:
    """Raise UsageError for flags that do not go together, and if there are neither labels nor a probe."""
    given = given_flags(context)
    if "probe" in given:
        refuse(given, ZERO_SHOT_FLAGS, "cannot be used with --probe: a probe has its own labels and temperature")
    elif {"labels", "labels_file"} <= set(given):
        raise UsageError("--labels-file cannot be used with --labels: give one of them")
    elif not {"labels", "labels_file"} & set(given):
        raise UsageError("there are no labels: give --labels cat,dog,car or --labels-file, or --probe")


Rank = Callable[["Tensor"], list[list[tuple[str, float]]]]
MakeClassifier = Callable[["Codebrush"], tuple[Rank, dict[str, Any]]]  # the second part goes into the report


def _zero_shot_classifier(given: dict[str, Any]) -> MakeClassifier:
    """Ranks the labels of the flags zero-shot. Raises UsageError if a flag is wrong."""
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
    check_labels(labels, given["none"])
    check_templates(sentences)
    if temperature is not None:
        check_temperature(temperature)

    def make(brush: "Codebrush") -> tuple[Rank, dict[str, Any]]:
        used = pack_temperature(brush.pack.info) if temperature is None else temperature
        classifier = ZeroShotClassifier(
            brush.clip, brush.tokenizer, labels, sentences, used, given["none"], brush.known_texts
        )
        about = {"temperature": used, "templates": list(sentences), **unread_entry(brush.tokenizer, labels)}
        if classifier.unread_labels:
            about["unread_labels"] = classifier.unread_labels
        return classifier.rank, about

    return make


def _probe_classifier(path: Path) -> MakeClassifier:
    """Ranks the labels of a saved probe. Raises PackError if it was trained with another CLIP."""
    from codebrush.pack.pack import clip_hash
    from codebrush.understanding.probe import LinearProbe

    learned = LinearProbe.load(path)

    def make(brush: "Codebrush") -> tuple[Rank, dict[str, Any]]:
        if learned.clip != clip_hash(brush.pack.member("clip")):
            raise PackError(
                f"{path} was made with the CLIP of another pack than '{brush.pack.name}': "
                f"name that pack with --pack, or make a probe for this one"
            )
        return learned.to(brush.device).rank, {"probe": str(path)}

    return make


def _best(ranking: list[tuple[str, float]], count: int) -> dict[str, Any]:
    """The entries of the first `count` labels, and of the answer "none of these", which takes no label's place; and how
    many `more` there are, if any.
    """
    from codebrush.understanding.classification import NONE

    labels = [each for each in ranking if each[0] != NONE][:count]
    best = [each for each in ranking if each in labels or each[0] == NONE]
    more = {"more": len(ranking) - len(best)} if len(best) < len(ranking) else {}
    return {"labels": [{"label": label, "probability": chance} for label, chance in best], **more}


def _print(results: list[dict[str, Any]]) -> None:
    from codebrush.understanding.classification import NONE

    for result in results:
        print(result["path"])
        for each in result["labels"]:
            print(f"  {each['probability']:6.1%}  {each['label']}")
        if "more" in result:
            own = [each for each in result["labels"] if each["label"] != NONE]
            print(f"  {result['more']:,} more: --top-k {len(own) + result['more']}, or --json")
