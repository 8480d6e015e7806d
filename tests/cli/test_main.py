"""The command line itself: fast help, version, usage errors, failing output streams, interruption."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic_core import SchemaSerializer, core_schema
from torch.nn.modules.module import register_module_forward_pre_hook

from codebrush import __version__
from codebrush.cli.main import COMMANDS, OBJECTS_AT_START, run

PROGRAM = [sys.executable, "-m", "codebrush"]
HEAVY = ("torch", "numpy", "PIL", "rich", "tokenizers", "datasets", "pyarrow", "safetensors")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom codebrush.cli.main import run\n"
        f"for command in {[[], *([name] for name in COMMANDS)]}: assert run([*command, '--help']) == 0\n"
        f"sys.exit(' '.join(set({HEAVY}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


def test_the_garbage_collector_begins_late_and_goes_on_as_usual() -> None:
    script = (
        "import atexit, gc\n"
        "from codebrush.cli import main as command\n"
        "usual, known = gc.get_threshold(), list(gc.callbacks)\n"
        "def at_exit():\n"
        "    late, before = gc.get_threshold(), sum(each['collections'] for each in gc.get_stats())\n"
        "    kept = [[] for _ in range(command.OBJECTS_AT_START + 1000)]\n"
        "    print(late[0], gc.get_threshold() == usual, gc.callbacks == known)\n"
        "    print(gc.get_freeze_count() > 0, sum(each['collections'] for each in gc.get_stats()) - before)\n"
        "atexit.register(at_exit)\n"
        "command.main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[1:]
    assert first == f"{OBJECTS_AT_START} True True"
    frozen, collections = second.split()
    assert frozen == "True"
    assert int(collections) >= 1


def test_ctrl_c_in_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            any(range(1000))

    def work(**_: object) -> None:
        Interrupted()
        time.sleep(60)

    usual, began = sys.unraisablehook, time.monotonic()
    monkeypatch.setattr("codebrush.cli.main.app", work)
    assert run(["--version"]) == 130
    assert time.monotonic() - began < 30
    assert capsys.readouterr().err == "codebrush: stopped\n"
    assert sys.unraisablehook is usual


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"codebrush {__version__}\n"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: codebrush" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["gnerate", "x"], "Did you mean 'generate'"),
        (["--colour"], "--colour"),
        (["generate"], "prompt"),
        (["generate", "x", "--n", "two"], "--n"),
        (["generate", "x", "--seed"], "--seed"),
        (["generate", "x", "y"], "y"),
        (["generate", "x", "--collor"], "No such option: --collor"),
        (["generate", "x", "--guidance-scale", "3"], "No such option: --guidance-scale (did you mean --cfg?)"),
        (["generate", "x", "--limit", "3"], "(did you mean --n?)"),
        (["search", "x", "--top-k", "3"], "(did you mean --n?)"),
        (["edit", "x.png", "--mask-image", "y.png"], "(did you mean --mask?)"),
        (["train", "x", "--ouput", "y"], "(did you mean --out?)"),
        (["data"], "see codebrush data --help"),
        (["data", "shapes"], "--out"),
        (["replay"], "file"),
    ],
)
def test_misuse_is_one_line_and_status_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"codebrush: .*; see codebrush.* --help\n", output.err)
    assert named in output.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"codebrush: No space left on device: .*\n", done.stderr)


def start_a_thread() -> None:
    """One whose stack nobody has room for."""
    before = threading.stack_size(2**50)
    try:
        threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)


def make_no_primitive() -> None:
    raise RuntimeError("could not create a primitive")  # what PyTorch says of oneDNN that gets no memory


@pytest.mark.parametrize(
    "what",
    [lambda: bytearray(2**60), lambda: torch.empty(2**50), start_a_thread, make_no_primitive],
    ids=["Python", "PyTorch", "thread", "oneDNN"],
)
def test_running_out_of_memory_is_one_line(
    what: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(**_: object) -> None:
        what()

    monkeypatch.setattr("codebrush.cli.main.app", out_of_memory)
    assert run(["--version"]) == 1
    assert capsys.readouterr().err.startswith("codebrush: there is not enough memory")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_error_where_no_memory_is_left_is_lack_of_memory() -> None:
    """Python and libraries make errors of other kinds of a MemoryError."""
    script = (
        "import resource, sys\nfrom codebrush.cli import main\n"
        "def fail(**_):\n"
        "    held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (held + 2**20,) * 2)\n"
        "    raise TypeError('takes 1 positional argument but 3 were given')\n"
        "main.app = fail\nsys.exit(main.run(['--version']))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.startswith("codebrush: there is not enough memory")) == (1, True), (
        ended.stderr
    )


def test_a_closed_pipe_prints_nothing() -> None:
    process = subprocess.Popen([*PROGRAM, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_interruption_is_one_line_and_leaves_nothing(
    micro_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = 0

    def interrupt(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 50:  # modules; in the middle of the drawing
            hook.remove()
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_module_forward_pre_hook(interrupt)
    out = tmp_path / "out"
    assert run(["generate", "a dog", "--pack", str(micro_pack), "--n", "2", "--out", str(out)]) == 130
    assert capsys.readouterr() == ("", "codebrush: stopped\n")
    assert not out.exists()


def as_pydantic_says_it(interrupted: KeyboardInterrupt) -> None:
    class Interrupting:
        def __repr__(self) -> str:
            raise interrupted

    SchemaSerializer(core_schema.literal_schema([Interrupting()]))


def as_safetensors_says_it(interrupted: KeyboardInterrupt) -> None:
    raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")


@pytest.mark.parametrize("error_of", [as_pydantic_says_it, as_safetensors_says_it])
def test_an_interruption_that_a_library_makes_another_error_of_is_one_line(
    error_of: Callable[[KeyboardInterrupt], None],
    micro_pack: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        hook.remove()
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as interrupted:
            error_of(interrupted)

    hook = register_module_forward_pre_hook(interrupt)
    assert run(["generate", "a dog", "--pack", str(micro_pack), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr() == ("", "codebrush: stopped\n")


def test_an_error_without_an_interruption_is_not_hidden(micro_pack: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        hook.remove()
        raise ValueError("ours")

    hook = register_module_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="ours"):
        run(["generate", "a dog", "--pack", str(micro_pack), "--out", str(tmp_path / "out")])
