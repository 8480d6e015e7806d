"""HTML of what a picture shows. What users and models wrote is escaped."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from codebrush.serving.job import Job
from codebrush.serving.studio import views


def found(job: Job) -> str:
    """What a job that reads one picture found, with what it warns of."""
    assert job.result is not None
    (data,) = job.result["data"]
    show = {"caption": _captions, "ask": _answer, "classify": _labels}.get(job.kind)
    content = _explanation(job, data) if show is None else show(data)
    return f'<div role="status">{content}{views.warnings(job.warnings)}</div>'


def _captions(captions: Sequence[Mapping[str, Any]]) -> str:
    lines = (f"<li>{escape(each['text'])} <span>CLIP {each['score']:.2f}</span></li>" for each in captions)
    return f'<ol class="cb-lines">{"".join(lines)}</ol>'


def _answer(answer: Mapping[str, Any]) -> str:
    guess = "" if answer["guess"] == answer["answer"] else f", the guess is “{escape(answer['guess'])}”"
    return (
        f'<p class="cb-answer">{escape(answer["answer"])}</p>'
        f'<p class="cb-note">{answer["confidence"]:.0%} sure{guess}</p>'
    )


def _labels(labels: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        f'<li><span>{escape(each["label"])}</span><meter min="0" max="1" value="{each["probability"]:.4f}" '
        f'aria-hidden="true"></meter><span>{each["probability"]:.1%}</span></li>'
        for each in labels
    )
    return f'<ol class="cb-bars">{"".join(rows)}</ol>'


def _explanation(job: Job, entry: Mapping[str, Any]) -> str:
    """The heat maps of a text and its words, and before them whether the picture shows what it says."""
    doubt = entry["doubt"]
    shown = f"The picture shows “{escape(entry['text'])}”" if doubt is None else escape(doubt[:1].upper() + doubt[1:])
    poor = [name for name, better in entry["better_than_random"].items() if not better]
    lines = [f"{shown}."]
    if poor:
        how = " and ".join(poor)
        lines.append(f"Do not rely on this map: measured by {how}, what it marks matters no more than any other part.")
    if entry["words_without_map"]:
        lines.append(f"Without a map, as they show nothing: {escape(', '.join(entry['words_without_map']))}.")
    if entry["seen"] < 1:
        lines.append(f"The pack's CLIP reads only the middle {entry['seen']:.0%} of the picture.")
    maps = [("whole text" if len(entry["words"]) > 1 else entry["text"], f"cosine {entry['cosine']:.3f}", entry["map"])]
    maps += [(word["word"], f"adds {word['gain']:+.3f}", word["map"]) for word in entry["words"] if word["map"]]
    figures = (
        f'<figure><img src="{_data_url(job, file)}" alt="Heat map of {escape(title)}">'
        f"<figcaption><strong>{escape(title)}</strong><span>{note}</span></figcaption></figure>"
        for title, note, file in maps
    )
    first = f'<p class="{"cb-doubt" if doubt else "cb-answer-line"}">{lines[0]}</p>'
    rest = "".join(f'<p class="cb-note">{line}</p>' for line in lines[1:])
    scale = '<p class="cb-note">Yellow: the hottest places; dark blue: the coldest.</p>'
    return f'{first}{rest}<div class="cb-grid cb-maps">{"".join(figures)}</div>{scale}'


def _data_url(job: Job, file: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((job.folder / file).read_bytes()).decode()}"
