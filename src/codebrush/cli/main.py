"""The `codebrush` command: finds the subcommand, runs it, and turns errors into one line and an exit status.

The status is 0, 1 if something failed, 2 for a usage error, 130 if interrupted. Each subcommand is imported when it is
used, and imports torch and other heavy packages inside its function, so that `codebrush --help` is fast.
"""

import codecs
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from threading import Timer, current_thread, main_thread
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from codebrush.cli.flags.common import EVERYTHING
from codebrush.data.sources.file_names import escaped
from codebrush.errors import CodebrushError, lacks_memory
from codebrush.generation.options import meant_option
from codebrush.process_memory import room_ran_out
from codebrush.version import __version__

COMMANDS = {  # name -> module, in the order of the help
    "generate": "codebrush.cli.generate",
    "replay": "codebrush.cli.generate",
    "vary": "codebrush.cli.edit",
    "edit": "codebrush.cli.edit",
    "translate": "codebrush.cli.edit",
    "interpolate": "codebrush.cli.edit",
    "upscale": "codebrush.cli.upscale",
    "caption": "codebrush.cli.caption",
    "ask": "codebrush.cli.caption",
    "classify": "codebrush.cli.classify",
    "probe": "codebrush.cli.probe",
    "evaluate": "codebrush.cli.evaluate",
    "explain": "codebrush.cli.explain",
    "index": "codebrush.cli.index",
    "search": "codebrush.cli.search",
    "similar": "codebrush.cli.duplicates",
    "duplicates": "codebrush.cli.duplicates",
    "serve": "codebrush.cli.serve",
    "train": "codebrush.cli.train",
    "blend": "codebrush.cli.blend",
    "packs": "codebrush.cli.packs",
    "convert": "codebrush.cli.convert",
    "embed": "codebrush.cli.embed",
    "curate": "codebrush.cli.curate",
    "data": "codebrush.cli.data",
    "doctor": "codebrush.cli.doctor",
}
INTERRUPTED = 130  # what shells report for Ctrl-C
# Python's collector of cyclic garbage waits until there are so many objects. Importing torch and a pack makes 300,000
# that stay, and looking through them again and again takes a quarter of the time of these imports.
OBJECTS_AT_START = 400_000

# The base class of what typer raises for bad arguments; in older releases of typer it comes from click.
ArgumentError: type[Exception] = typer.BadParameter.__mro__[2]


MANY_OPTIONS = 40  # of a command with more, --help shows those of USUAL_TOPICS and --help-all the rest
USUAL_TOPICS = ("Arguments", "Options", "Sampling")
USUAL_OPTIONS = ("size", "steps")  # shown although their topic is not


class _TopicalCommand(TyperCommand):
    """A command whose help has a section for each topic: the `rich_help_panel` of its options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        everything, left_out = ctx.meta.get(EVERYTHING) or len(self.params) <= MANY_OPTIONS, dict[str, None]()
        for param in sorted(self.get_params(ctx), key=lambda each: each.param_type_name != "argument"):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            topic = getattr(param, "rich_help_panel", None) or usual
            if not everything and param.name in USUAL_OPTIONS:
                topic = usual
            if everything or topic in USUAL_TOPICS:
                sections.setdefault(topic, []).append(record)
            else:
                left_out[topic.partition(":")[0].lower()] = None
        for topic, records in sections.items():
            with formatter.section(topic):
                formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"--help-all also shows the options of {', '.join(left_out)}.")


class _LazyCommands(Mapping[str, Any]):
    """The table of commands in the form that typer expects; looking one up imports its module."""

    def __getitem__(self, name: str) -> Any:
        command = getattr(import_module(COMMANDS[name]), name)
        if not isinstance(command, typer.Typer):
            function, command = command, typer.Typer(rich_markup_mode=None, add_completion=False)
            command.command(name, cls=_TopicalCommand)(function)
        built = typer.main.get_command(command)
        built.name = name
        return built

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _LazyCommands()  # pyright: ignore[reportAttributeAccessIssue]


app = typer.Typer(cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"codebrush {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def codebrush(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Make pictures from words, and train the models that do it on your own captioned pictures."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command: run `arguments` (None: those of the process) and exit with the status."""
    _collect_later()
    status = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # the process ends: what is left need not be looked through for garbage
    sys.exit(status)


def _collect_later() -> None:
    """Let the collector of cyclic garbage begin with more than OBJECTS_AT_START objects, and then go on as usual."""
    usual = gc.get_threshold()
    if not usual[0]:  # switched off by whoever started this process
        return

    def go_on(phase: str, _: dict[str, int]) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(go_on)

    gc.callbacks.append(go_on)
    gc.set_threshold(OBJECTS_AT_START, *usual[1:])


class _Interrupts:
    """Raises KeyboardInterrupt at a Ctrl-C while it is the signal's handler, and knows that one came.

    Some libraries make another error of it: pydantic while it builds a model, safetensors while it reads a file.
    """

    raises_interrupt = True  # see `interrupts_held`
    came = False

    def __call__(self, *_: object) -> None:
        self.came = True
        raise KeyboardInterrupt

    def __enter__(self) -> "_Interrupts":
        self.placed = (
            current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self.placed:
            signal.signal(signal.SIGINT, self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.placed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _interrupts_again() -> Iterator[None]:
    """Repeat a Ctrl-C that comes while Python runs a finalizer or a weak reference's callback: there it is printed and
    otherwise lost. It comes a moment later, as in the hook it would be lost again.
    """
    usual, coming = sys.unraisablehook, list[Timer]()

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return usual(unraisable)
        coming.append(Timer(0.01, signal.pthread_kill, (main_thread().ident, signal.SIGINT)))  # this also ends a sleep
        coming[-1].start()

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = usual
        for each in coming:  # there is nothing left to stop
            each.cancel()


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. The `obj` of its context is the time when it began, of
    `time.monotonic`."""
    began = time.monotonic()
    codecs.register_error("escaped", _escape)  # a file name that the terminal cannot encode must not be an error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")  # pyright: ignore[reportAttributeAccessIssue]
    interrupts = _Interrupts()
    try:
        with _short_warnings(), interrupts, _interrupts_again():
            status = app(args=list(arguments), prog_name="codebrush", standalone_mode=False, obj=began)
        sys.stdout.flush()
    except CodebrushError as error:
        return _print_error(str(error), error.exit_status)
    except ArgumentError as error:
        return _print_error(_argument_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except OSError as error:
        _discard_stdout()
        return 1 if isinstance(error, BrokenPipeError) else _print_error(_os_message(error), 1)
    except Exception as error:
        if interrupts.came:
            status = INTERRUPTED
        elif lacks_memory(error) or room_ran_out():
            return _print_error("there is not enough memory: free some, or use smaller batches or pictures", 1)
        else:
            raise
    return _print_error("stopped", INTERRUPTED) if status == INTERRUPTED else int(status or 0)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes in place of characters that it cannot encode; bytes of file names as everywhere: \\xe9."""
    assert isinstance(error, UnicodeEncodeError)
    text = escaped(error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _print_error(message: str, status: int) -> int:
    print(f"codebrush: {' '.join(message.split())}", file=sys.stderr)
    return status


def _argument_message(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "codebrush"
    message = error.format_message().rstrip(".")
    if context is not None and (wrong := getattr(error, "option_name", "")).startswith("--") and ": --" in message:
        flags = [flag for param in context.command.params for flag in param.opts if flag.startswith("--")]
        known = {_bare(flag): flag for flag in flags}
        meant = meant_option(_bare(wrong), known)
        message = f"No such option: {wrong}" + (f" (did you mean {known[meant]}?)" if meant else "")
    return f"{message}; see {command} --help"


def _bare(flag: str) -> str:
    """The name of a flag as Python writes it."""
    return flag.lstrip("-").replace("-", "_")


def _os_message(error: OSError) -> str:
    place = error.filename or "the output"
    return f"{error.strerror or error}: check {place}, its free space and its permissions"


def _discard_stdout() -> None:
    """If stdout cannot be written to, redirect it to nowhere: flushing its buffer at exit would raise another error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Prints each warning once, as one line on stderr, without the source line that raised it."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = " ".join(str(message).split())
        if line not in shown:
            print(f"codebrush: warning: {line}", file=sys.stderr)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
