"""Makes the built-in pack from nothing: every table, every stage, the pack and its card, one after the other.

    codebrush data emoji --out emoji.parquet            # see docs: the drawings, from their publishers
    python recipes/emoji/make.py emoji.parquet --more emoji-more.parquet icons.parquet

It says which of the steps it is at, and leaves out what is there: stopped, it goes on with the same command, within a
stage at its last checkpoint. The pack is RUNS/pack in the end. `--until NAME` ends after a step, `--list` only says
which steps there are and which are done. On a GPU the stages run there; `--threads` is for the CPU. `--rehearse` trains
two steps of every stage in a folder of its own, to see that all fits together: what comes out draws nothing. The decoys
of the scorer are drawn with the VQGAN of the installed pack.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import yaml
from assemble import PARTS

from codebrush.files import atomic_file
from codebrush.training.run_folder import MODEL_FOLDER
from codebrush.understanding.answer_confidence import FILE as CONFIDENCE

HERE = Path(__file__).resolve().parent
BEFORE = HERE.parents[1] / "src" / "codebrush" / "packs" / "emoji" / "after.png"  # of the pack that is there
REHEARSED = {"steps": 2, "warmup": 0, "log_every": 1, "checkpoint_every": 1, "preview_every": 0, "compile": False}
REHEARSED_BATCH = 32  # rows; the scorer needs some beside its 24 decoys
MARK = ".done"  # ending of the file that says that a step is done which writes no file of its own
FIRST_CLIP_PARTS = 9  # parts of the captioner that read the first CLIP


@dataclass(frozen=True)
class Step:
    """One step: its name, what it writes last, and the command without the program.

    A stage has a `recipe`, as text for a file that its command reads, and a `run` folder that it may resume.
    """

    name: str
    made: Path
    command: tuple[str, ...]
    recipe: tuple[Path, str] | None = None
    run: Path | None = None


class Plan:
    """All steps in their order, with folders and tables under `runs`."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.runs, self.emoji = given, given.runs, given.emoji
        self.drawings = self.runs / "data" / "drawings.parquet"
        self.painted = self.runs / "data" / "painter-main.parquet"
        self.mixed, self.styled = (self.runs / "data" / f"painter-{kind}.parquet" for kind in ("mixed", "styles"))
        self.seen = self.runs / "data" / "seen-by-clip.parquet"
        self.judge, self.styles = self.runs / "judge-2", self.runs / "style_classifier"

    def steps(self) -> list[Step]:
        """The steps, each after what it needs."""
        parts = (
            self._tables(),
            self._clip_and_vqgan(),
            self._painters(),
            self._readers(),
            self._judges(),
            self._pack(),
        )
        return list(chain(*parts))

    def _few(self, usual: int, rehearsed: int = 2) -> str:
        """A number of things as an argument."""
        return str(rehearsed if self.given.rehearse else usual)

    def _tables(self) -> Iterator[Step]:
        composed = self.runs / "data" / "compositions.parquet"
        yield self._script("join", self.drawings, self.emoji, *self.given.more)
        main = ("--styles", "fluent-color", "fluent-3d")
        yield self._script("compositions", composed, self.drawings, "--count", self._few(6000, 60), *main)
        icons: tuple[Path, ...] = ()
        if self.given.icon_packages:
            icons = (self.runs / "data" / "more-icons.parquet",)
            yield self._script("more_icons", icons[0], self.given.icon_packages, self.drawings)
        yield self._script("join", self.seen, self.drawings, *icons, composed, name="seen by CLIP")
        weights = ((self.painted, "0.1", "0.06"), (self.mixed, "0.35", "0.25"), (self.styled, "1.1", "0.35"))
        for out, others, share in weights:
            shown = ("--others", others, "--composed", share)
            yield self._script("painter_table", out, self.drawings, composed, *shown, name=out.stem)

    def _clip_and_vqgan(self) -> Iterator[Step]:
        yield self._stage("vqgan", self.emoji)
        yield self._stage("vqgan-128", self.emoji, start="vqgan")
        yield self._stage("clip-without-noto", self.emoji)
        yield self._stage("clip", self.emoji, start="clip-without-noto")
        yield self._stage("clip-all-styles", self.drawings, start="clip")
        yield self._stage("clip-more-icons", self.seen, start="clip-all-styles")
        yield self._stage("vqgan-decoder", self.emoji, start="vqgan-128", clip="clip")
        yield self._stage("vqgan-decoder-2", self.drawings, start="vqgan-decoder", clip="clip-more-icons")

    def _painters(self) -> Iterator[Step]:
        parts = (
            ("flow", None, self.painted),
            ("painter-flow", "flow", self.painted),
            ("painter-flow-2", "painter-flow", self.mixed),
        )
        for name, start, source in parts:
            yield self._stage(name, source, start=start, clip="clip-all-styles", vqgan="vqgan-decoder")
        yield self._adapted("flow", "painter-flow-2")
        adapted, clip = "flow-for-clip", "clip-more-icons"
        yield self._stage("painter-flow-3", self.styled, start=adapted, clip=clip, vqgan="vqgan-decoder")

    def _readers(self) -> Iterator[Step]:
        for part in range(1, PARTS + 1):
            name, before = (f"captioner-{number}" if number > 1 else "captioner" for number in (part, part - 1))
            start, clip = before if part > 1 else None, self._clip_of_part(part)
            if part == PARTS:
                yield self._adapted("captioner", before)
                start = "captioner-for-clip"
            source = self.emoji if clip == "clip" else self.drawings
            yield self._stage(name, source, recipe=f"captioner/{name}", clip=clip, start=start)
        yield self._stage("prior", self.emoji, clip="clip-more-icons")
        yield self._stage("translator", self.emoji, clip="clip")
        yield self._stage("upscaler", self.emoji, clip="clip", vqgan="vqgan-decoder")
        if self.given.icon_packages:
            large = self.runs / "data" / "large.parquet"
            yield self._script("large_drawings", large, self.given.icon_packages, self.emoji)
            clip, vqgan = "clip-more-icons", "vqgan-decoder-2"
            yield self._stage("upscaler-2", large, start="upscaler", clip=clip, vqgan=vqgan)

    def _clip_of_part(self, part: int) -> str:
        """The CLIP that a part of the captioner's training reads."""
        if part <= FIRST_CLIP_PARTS:
            return "clip"
        return "clip-all-styles" if part < PARTS else "clip-more-icons"

    def _adapted(self, member: str, run: str) -> Step:
        """A network that read the CLIP of all styles, adapted to that of more icons."""
        before, after = (self._model(f"clip-{kind}") for kind in ("all-styles", "more-icons"))
        words = (member, self._model(run), self.drawings, "--before", before, "--after", after)
        return self._script("change_clip", self._model(f"{member}-for-clip"), *words, name=member)

    def _judges(self) -> Iterator[Step]:
        """The scorer, which is in the pack, and models that only measure it."""
        decoys = self.runs / "decoys"
        led = [word for name in ("clip-all-styles", "clip-more-icons") for word in ("--clip", str(self._model(name)))]
        many = ("--count", self._few(150))
        yield self._script("decoys", decoys, self.emoji, *led, *many, made=self.runs / "decoys.done")
        yield self._stage("scorer", self.seen, start="clip-more-icons", decoys=decoys)
        yield self._stage("judge", self.drawings)
        yield self._stage("judge-2", self.drawings, start="judge")
        yield self._script("style_classifier", self.styles, self.drawings, "--steps", self._few(2500))

    def _pack(self) -> Iterator[Step]:
        out, given = self.runs / "pack", self.given
        earlier = ("--earlier", given.earlier) if given.earlier else ()
        if not (given.icon_packages or given.earlier):
            earlier = ("--upscaler", "upscaler")
        yield self._script("assemble", out, self.runs, self.emoji, *earlier, made=out / "pack.json")
        yield self._script("fit_temperature", None, out, self.emoji, made=self.runs / "fit_temperature.done")
        if given.photographs:
            began = (given.photographs, out)
            yield self._script("../photos/add_start", None, *began, name="photographs", made=out / "starts")
        if given.answers:
            read = (out, given.answers, "--out", out / "captioner")
            yield self._script("answer_confidence", None, *read, made=out / "captioner" / CONFIDENCE)
        prompts = ("--prompts", self._few(100))
        judged = (out, self.emoji, "--judge", self._model("judge-2"), *prompts, "--write")
        yield self._script("score_levels", None, *judged, made=self.runs / "score_levels.done")
        others = ("--control", self.runs / "clip-without-noto", "--style-classifier", self.styles, "--before", BEFORE)
        shown = (out, self.emoji, "--judge", self.judge, *others, *prompts)
        yield self._script("card", None, *shown, made=out / "README.md")

    def _model(self, run: str) -> Path:
        return self.runs / run / MODEL_FOLDER

    def _script(
        self, script: str, out: Path | None, *words: str | Path, name: str | None = None, made: Path | None = None
    ) -> Step:
        """A step by another script of this folder, which writes to `out` unless that is None."""
        written = () if out is None else ("--out", str(out))
        command = (str(HERE / f"{script}.py"), *map(str, words), *written)
        result = made or out
        assert result is not None
        return Step(Path(script).name if name is None else f"{Path(script).name} {name}", result, command)

    def _stage(
        self,
        name: str,
        source: Path,
        *,
        recipe: str | None = None,
        start: str | None = None,
        clip: str | None = None,
        vqgan: str | None = None,
        decoys: Path | None = None,
    ) -> Step:
        """A stage of training: a run folder of its own, from the recipe of that name unless `recipe` is another."""
        settings = yaml.safe_load((HERE / f"{recipe or name}.yaml").read_text(encoding="utf-8"))
        if self.given.rehearse:
            settings["loop"] |= REHEARSED | {"batch_size": min(settings["loop"]["batch_size"], REHEARSED_BATCH)}
        if decoys is not None:
            settings["decoys"]["source"] = str(decoys)
        effective = self.runs / "recipes" / f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False)
        others = [("--from", start), ("--clip", clip), ("--vqgan", vqgan)]
        words = [word for flag, run in others if run is not None for word in (flag, str(self._model(run)))]
        run = self.runs / name
        command = ["-m", "codebrush", "train", settings["stage"], str(effective[0]), "--source", str(source), *words]
        command += ["--out", str(run), "--threads", str(self.given.threads)]
        return Step(name, self._model(name), tuple(command), effective, run)


def run(steps: Sequence[Step], until: str | None) -> None:
    """Run the steps that are not done, up to and with `until`. Raises SystemExit where one fails."""
    for number, step in enumerate(steps, 1):
        place = f"{number} of {len(steps)}: {step.name}"
        if step.made.exists():
            print(f"{place} is there: {step.made}", flush=True)
        else:
            began = time.monotonic()
            print(place, flush=True)
            if step.recipe is not None:
                file, text = step.recipe
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(file) as part:
                    part.write_text(text, encoding="utf-8")
            resumed = ["--resume"] if step.run is not None and step.run.exists() else []
            if code := subprocess.run([sys.executable, *step.command, *resumed], check=False).returncode:
                raise SystemExit(f"{place} ended with {code}: the same command goes on from here")
            if step.made.suffix == MARK:
                step.made.touch()
            for later in steps[number:]:  # what was changed in a pack that is now another is to be changed again
                if later.made.suffix == MARK and str(step.made.parent) in later.command:
                    later.made.unlink(missing_ok=True)
            print(f"{place} took {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
        if step.name == until:
            return


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=Path, help="emoji.parquet")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="tables of more styles and of icons")
    parser.add_argument("--runs", type=Path, help="folder for tables, runs and the pack; default: runs/emoji")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a stage; 0 leaves the choice to PyTorch")
    parser.add_argument("--earlier", type=Path, help="pack that has what the run folders lack")
    parser.add_argument(
        "--answers", type=Path, help="folder with emoji, icons and cifar10-mini, for answer_confidence.py"
    )
    parser.add_argument(
        "--icon-packages", type=Path, help="folder of the npm packages that more_icons.py and large_drawings.py list"
    )
    parser.add_argument("--photographs", type=Path, help="run folder of the VQGAN of recipes/photos, put in as a start")
    parser.add_argument("--until", metavar="STEP", help="end after this step")
    parser.add_argument("--list", action="store_true", help="say the steps and which are done, and run none")
    parser.add_argument("--rehearse", action="store_true", help="two steps of every stage, to see that all fits")
    given = parser.parse_args()
    given.runs = given.runs or Path("runs/emoji-rehearsed" if given.rehearse else "runs/emoji")
    steps = Plan(given).steps()
    if given.until is not None and given.until not in [step.name for step in steps]:
        parser.error(f"there is no step {given.until}: {', '.join(step.name for step in steps)}")
    if given.list:
        for step in steps:
            print(f"{'done' if step.made.exists() else '    '}  {step.name}")
        return
    (given.runs / "data").mkdir(parents=True, exist_ok=True)
    run(steps, given.until)


if __name__ == "__main__":
    main()
