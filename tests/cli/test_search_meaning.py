"""`codebrush search` by what captions mean, and its prompt for one text after the other."""

import io
import json
from pathlib import Path

import pytest

from codebrush import Codebrush
from codebrush.cli.main import run
from codebrush.errors import PromptError
from codebrush.pack.pack import clip_hash
from codebrush.search.database import Embedder, open_database
from codebrush.search.finding import Query, find
from codebrush.search.nearness import Nearness


def test_captions_are_found_by_what_they_mean(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--mode", "meaning", "--db", str(database), "--pack", str(micro_pack), "--json"]
    for arguments, captions in (
        (["an animal"], ["a blue dog", "a cat", "a green frog"]),
        (["a puppy", "-k", "1"], ["a blue dog"]),
        (["an invoice"], []),
    ):
        assert run(["search", *arguments, *given]) == 0
        assert [each["caption"] for each in json.loads(capsys.readouterr().out)["results"]] == captions
    assert run(["search", "a cat", "--image", "a.png", *given]) == 2
    assert "--image cannot be used with --mode meaning" in capsys.readouterr().err


@pytest.mark.parametrize("near", [True, False])
def test_what_means_the_same_is_shown_where_no_picture_is_near(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    monkeypatch.setattr("codebrush.search.finding.nearness", lambda *_, **__: Nearness(0.95 if near else 0.5))
    command = ["search", "an animal", "--db", str(database), "--pack", str(micro_pack)]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    scores = {each["path"]: each["score"] for each in report["results"]}
    meant = ["a blue dog", "a cat", "a green frog"]
    assert len(scores) == 5
    assert ([each["caption"] for each in report["results"]][:3] == meant) == (not near)
    assert report.get("by_meaning") == (None if near else meant)
    assert run(command) == 0
    told = "; first come pictures whose captions or columns are near in meaning: a blue dog, a cat, a green frog\n"
    assert (told in capsys.readouterr().err) == (not near)
    assert run([*command, "--min-score", "-1", "--json"]) == 0  # a least cosine asks for pictures alone
    report = json.loads(capsys.readouterr().out)
    assert {each["path"]: pytest.approx(each["score"], abs=1e-4) for each in report["results"]} == scores
    assert "by_meaning" not in report


def test_python_finds_the_same(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codebrush.search.finding.nearness", lambda *_, **__: Nearness(0.5))
    brush = Codebrush.from_pretrained(micro_pack, device="cpu")
    embedder = Embedder(brush.pack.name, clip_hash(brush.pack.member("clip")))
    found = find(open_database(database, embedder), brush.clip, brush.tokenizer, Query(text="an animal", k=4))
    assert run(["search", "an animal", "-k", "4", "--db", str(database), "--pack", str(micro_pack), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(hit.path, hit.score) for hit in found.hits] == [(hit["path"], hit["score"]) for hit in report["results"]]
    assert (len(found.hits), list(found.meant), found.note) == (4, report["by_meaning"], "")
    with pytest.raises(PromptError, match='the pack cannot read "龙"'):
        find(open_database(database, embedder), brush.clip, brush.tokenizer, Query(text="龙"))


def test_without_a_text_the_lines_of_the_input_are_searched_for(
    database: Path, micro_pack: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("flower\n\n龙\ncat\n"))
    opened = []
    monkeypatch.setattr(
        "codebrush.search.database.open_database",
        lambda *args, it=open_database, **named: opened.append(args) or it(*args, **named),
    )
    assert run(["search", "--db", str(database), "--pack", str(micro_pack), "--json", "-k", "2"]) == 0
    output = capsys.readouterr()
    reports = [json.loads(line) for line in output.out.splitlines()]
    assert [len(report["results"]) for report in reports] == [2, 2]
    assert output.err.count('the pack cannot read "龙"') == 1  # does not end it
    assert len(opened) == 1
