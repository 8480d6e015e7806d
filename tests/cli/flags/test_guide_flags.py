"""Every option of guidance is a flag, under its topic, with its default; a flag without effect is refused."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from codebrush.cli.flags.guidance import with_guide_flags
from codebrush.cli.main import run
from codebrush.generation.guided.guide_options import GuideOptions
from codebrush.generation.guided.presets import PRESETS
from codebrush.generation.options import FLOW_OPTIONS, FlowSettings

OPTIONS = dataclasses.fields(GuideOptions)


@pytest.fixture(scope="module")
def help_sections() -> dict[str, list[str]]:
    """The help of `generate`: each heading with its lines."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert run(["generate", "--help-all"]) == 0
    parts = re.split(r"^(\S.*):\n", text.getvalue(), flags=re.MULTILINE)[1:]
    return {heading: lines.splitlines() for heading, lines in zip(parts[::2], parts[1::2], strict=True)}


def entry(lines: list[str], flag: str) -> str:
    """All that the help says of a flag, on one line."""
    start = next(number for number, line in enumerate(lines) if re.match(rf"  (-\w, )?{flag}\b(?!-)", line))
    end = next((n for n in range(start + 1, len(lines)) if re.match(r"  -", lines[n]) or not lines[n]), len(lines))
    return " ".join(" ".join(lines[start:end]).split())


def test_the_help_has_a_section_for_each_topic(help_sections: dict[str, list[str]]) -> None:
    named = ("run", "prompts", "cutouts", "latent", "optimiser", "penalties", "camera", "memory")
    topics = [f"Guidance: {topic}" for topic in named]
    assert list(help_sections) == ["Arguments", "Options", "Sampling", "Flow", "Retrieval", "Guidance", *topics]
    assert max(len(line) for lines in help_sections.values() for line in lines) <= 80
    assert entry(help_sections["Options"], "--help")
    assert entry(help_sections["Sampling"], "--cfg")
    assert entry(help_sections["Guidance"], "--resume")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_under_its_topic_with_its_default(
    option: "dataclasses.Field[Any]", help_sections: dict[str, list[str]]
) -> None:
    flag = f"--{option.name.replace('_', '-')}"
    text = entry(help_sections[f"Guidance: {option.metadata['topic']}"], flag)
    default = option.default
    from_picture, from_noise = (PRESETS[name].get(option.name, default) for name in ("sample", "random"))
    assert " ".join(option.metadata["help"].split()).rstrip(".") in re.sub(r"(\w)- (\w)", r"\1-\2", text)
    assert all(choice in text for choice in option.metadata.get("choices", ()))
    if isinstance(default, bool):
        assert f"--no-{flag[2:]} " in text
        assert text.endswith("[on]" if default else "[off]")
    elif default is not None and default != ():
        usual = text[text.rindex("[") + 1 : -1]
        if option.name in FLOW_OPTIONS:
            usual = usual.removeprefix("guide: ").removesuffix(f"; flow: {getattr(FlowSettings, option.name)}")
        shown = usual.replace(", from", "; from").split("; from noise ")
        expected = [from_picture] if from_picture == from_noise else [from_picture, from_noise]
        assert [each if isinstance(default, str) else float(each) for each in shown] == expected


def called_with(*arguments: str) -> dict[str, Any]:
    """The guidance that a command is called with."""
    seen: list[dict[str, Any]] = []

    @with_guide_flags
    def command(prompt: Annotated[str, typer.Argument()], *, guidance: dict[str, Any]) -> None:
        assert prompt == "x"
        seen.append(guidance)

    app = typer.Typer()
    app.command()(command)
    app(["x", *arguments], standalone_mode=False)
    return seen[0]


def test_only_what_is_given_reaches_the_command() -> None:
    assert called_with() == {}
    arguments = ["--learning-rate", "0.5", "--steps", "7", "--no-quantise", "--seamless", "--size", "64x32"]
    given = {"learning_rate": 0.5, "steps": 7, "quantise": False, "seamless": True, "size": "64x32"}
    assert called_with(*arguments) == given
    assert GuideOptions(**given).quantise is False


def test_former_flags_are_taken() -> None:
    given = {"other_clip": ["a", "b"], "own_clip_weight": 0.5}
    with pytest.warns(UserWarning, match="--judge-weight is called --own-clip-weight now") as said:
        assert called_with("--judge", "a", "--other-clip", "b", "--judge-weight", "0.5") == given
    assert [str(warning.message).split(" now")[0] for warning in said] == [
        "--judge is called --other-clip",
        "--judge-weight is called --own-clip-weight",
    ]


def test_texts_may_be_repeated() -> None:
    given = called_with("--extra", "a, b", "--extra", "c", "--exclude", "d")
    assert given == {"extra": ["a, b", "c"], "exclude": ["d"]}
    assert GuideOptions(**given).extra == ("a, b", "c")


def test_a_flag_cannot_mean_two_things() -> None:
    with pytest.raises(ValueError, match="of the same name as guidance: cutouts, steps"):

        @with_guide_flags
        def command(steps: int, cutouts: int, *, guidance: dict[str, Any]) -> None:
            pass


GUIDED, RESUMED = "an option of guidance: add --method guide", "a resumed run keeps its own options"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["x", "--learning-rate", "0.1"], f"--learning-rate is {GUIDED}"),
        (["x", "--no-quantise"], f"--quantise is {GUIDED}"),
        (["x", "--method", "sample", "--extra", "y"], f"--extra is {GUIDED}"),
        (["x", "--method", "sample", "--preset", "notebook"], f"--preset is {GUIDED}"),
        (["x", "--video", "mp4"], f"--video is {GUIDED}"),
        (["x", "--fps", "10"], f"--fps is {GUIDED}"),
        (["x", "--method", "guide", "--between", "3"], "--between is for a video: add --video mp4"),
        (["x", "--method", "guide", "--video", "gif", "--fps", "0"], "--fps"),
        (["x", "--method", "guide", "--video", "gif", "--between", "-1"], "--between"),
        (["x", "--method", "guide", "--video", "x.avi"], "must end in .mp4, .gif, .webp, not x.avi"),
        (["x", "--method", "draw"], "'draw' is not one of 'sample', 'flow', 'retrieve', 'guide'"),
        (["--method", "guide"], "prompt"),
        (["x", "--resume", "there"], f"a prompt cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--seed", "0"], f"--seed cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--cfg", "2"], f"--cfg cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--steps", "2"], f"--steps cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--out", "x"], f"--out cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--method", "sample"], f"--method cannot be used with --resume: {RESUMED}"),
        (["--resume", "there", "--fps", "5"], "--fps is for a video: add --video mp4"),
    ],
)
def test_a_flag_without_effect_is_one_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["generate", *arguments, "--json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"codebrush: .*\n", output.err)
    assert named in output.err
    assert list(tmp_path.iterdir()) == []


def test_the_usual_help_is_short_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    usual = capsys.readouterr().out
    flags = re.findall(r"^  (--?[a-z-]+)", usual, re.MULTILINE)
    assert 15 <= len(flags) <= 25
    assert "Steps of guidance, of a flow, or of a masked code transformer. [guide: 40, from noise 200; flow: 16]" in (
        " ".join(usual.split())
    )
    assert {"--size", "--steps", "--style", "--cfg", "--help-all"} <= set(flags)
    assert "--help-all also shows the options of flow, retrieval, guidance." in " ".join(usual.split())
    assert run(["edit", "--help"]) == 0
    assert "--help-all" not in capsys.readouterr().out
