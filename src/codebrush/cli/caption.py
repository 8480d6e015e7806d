"""`codebrush caption` and `codebrush ask`: what is in pictures, in words."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags import given_flags, refuse
from codebrush.cli.output import print_json
from codebrush.cli.pictures import check_picture_file, picture_files
from codebrush.errors import UsageError

PackOption = Annotated[str, typer.Option(help="Built-in name, folder or hub id of the models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


class Method(StrEnum):
    """How words are chosen."""

    BEAM = "beam"
    GREEDY = "greedy"
    SAMPLE = "sample"


def caption(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=100, help="How many captions of each.")] = 1,
    method: Annotated[Method, typer.Option(help="The likeliest texts, the likeliest words, or drawn ones.")] = (
        Method.BEAM
    ),
    seed: Annotated[int, typer.Option(min=0, help="With --method sample: another seed, other captions.")] = 0,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Put pictures into words, best first by CLIP's score. Pictures that cannot be read are named and skipped."""
    from codebrush.errors import ImageError
    from codebrush.pipeline import Codebrush

    if method != Method.SAMPLE:
        refuse(given_flags(context), ("seed",), "is for captions that are drawn: add --method sample")
    files, skipped = picture_files(images)
    brush = Codebrush.from_pretrained(pack)
    results: list[dict[str, Any]] = []
    for number, path in enumerate(files):
        try:
            (found,) = brush.caption([path], n, method.value, seed, first=number)
        except ImageError as error:
            print(f"codebrush: skipped {error}", file=sys.stderr)
            skipped.append({"path": str(path), "reason": str(error)})
            continue
        said = [{"text": each.text, "score": each.score, "probability": each.probability} for each in found]
        results.append({"path": str(path), "captions": said})
    if not results:
        raise ImageError("none of the pictures could be read: check their paths")
    if json_output:
        print_json({"results": results, "skipped": skipped})
        return
    for result in results:
        for each in result["captions"]:
            print(f"{result['path']}: {each['text']}  (CLIP {each['score']:.3f})")


def ask(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Argument(help='A question, like "how many red circles are there?"')],
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least confidence of an answer that is given.")
    ] = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Answer a question about a picture; below the threshold the answer is "I don't know"."""
    if not question.strip():
        raise UsageError("the question is empty: ask something")
    check_picture_file(image)
    from codebrush.pipeline import Codebrush
    from codebrush.understanding.captioning import SURE

    answer = Codebrush.from_pretrained(pack).ask(image, question, SURE if threshold is None else threshold)
    if json_output:
        print_json({"answer": answer.text, "confidence": answer.confidence, "guess": answer.guess})
    else:
        print(f"{answer.text}  (confidence {answer.confidence:.2f})")
