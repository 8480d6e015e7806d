"""`codebrush caption` and `codebrush ask`: captions of pictures, and answers to questions about them."""

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrush.cli.flags.common import FitOption, JsonOption, PackOption, given_flags, refuse
from codebrush.cli.flags.pictures import check_picture_file, each_readable, picture_files, seen_picture
from codebrush.cli.flags.sources import MaxPixelsOption
from codebrush.cli.output.printing import print_json, unread_entry
from codebrush.errors import UsageError


class Method(StrEnum):
    """How the text is decoded."""

    BEAM = "beam"
    GREEDY = "greedy"
    SAMPLE = "sample"


def caption(
    context: typer.Context,
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=100, help="Number of captions for each picture.")] = 1,
    method: Annotated[
        Method,
        typer.Option(help="Text decoding: beam search, the most probable token each time, or sampling."),
    ] = Method.BEAM,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of --method sample.")] = 0,
    fit: FitOption = None,
    max_pixels: MaxPixelsOption = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Write captions for pictures, sorted by CLIP score.

    Says so if texts about other things fit a picture as well as its captions. Pictures that cannot be read are named
    and skipped.
    """
    from codebrush.pipeline import Codebrush

    if method != Method.SAMPLE:
        refuse(given_flags(context), ("seed",), "only affects sampled captions: add --method sample")
    files, skipped = picture_files(images)
    brush = Codebrush.from_pretrained(pack)
    rule = None if fit is None else fit.value

    def captioned(number: int, path: Path) -> dict[str, Any]:
        picture, frame = seen_picture(brush.clip, path)
        (found,) = brush.caption([picture], n, method.value, seed, number, rule)  # its own random numbers
        doubt = found[0].doubt if found else "no caption was written"
        if doubt is not None:
            print(f"codebrush: {path}: {doubt}", file=sys.stderr)
        return {"path": str(path), **frame, "captions": [asdict(each) for each in found], "doubtful": doubt is not None}

    results = each_readable(files, skipped, captioned)
    if json_output:
        print_json({"results": results, "skipped": skipped})
        return
    for result in results:
        for each in result["captions"]:
            print(f"{result['path']}: {each['text']}  (CLIP {each['score']:.3f})")


def ask(
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    question: Annotated[str, typer.Argument(help='Question, like "how many red circles are there?"')],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help='Confidence below which the answer is "I don\'t know".  [0.5, or 0.4 without calibration]',
        ),
    ] = None,
    pack: PackOption = "emoji",
    json_output: JsonOption = False,
) -> None:
    """Answer a question about a picture.

    Prints the answer and the confidence, 0 to 1, that it is right, or "I don't know" and why.
    """
    if not question.strip():
        raise UsageError("the question is empty: ask something")
    check_picture_file(image)
    from codebrush.pipeline import Codebrush

    brush = Codebrush.from_pretrained(pack)
    picture, frame = seen_picture(brush.clip, image)
    answer = brush.ask(picture, question, threshold)
    if json_output:
        unread = unread_entry(brush.reader.caption_tokenizer, [question])
        print_json(
            {"answer": answer.text, "confidence": answer.confidence, "guess": answer.guess, "reason": answer.reason}
            | frame
            | unread
        )
    elif answer.reason:
        print(f"{answer.text}: {answer.reason}  (confidence {answer.confidence:.2f})")
    else:
        print(f"{answer.text}  (confidence {answer.confidence:.2f})")
