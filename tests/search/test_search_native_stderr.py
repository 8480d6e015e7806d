"""Output of a panicking thread is held back; nothing else is lost."""

import os
import subprocess
import sys
import threading
import time

import pytest

from codebrush.search.native_stderr import DEBUG_VARIABLE, hold_panics

PANIC = (
    "\nthread 'lancedb-tokio-worker' (14082) panicked at /root/fst-0.4.7/src/raw/node.rs:698:21:\n"
    "index out of bounds: the len is 28\nstack backtrace:\nnote: Some details are omitted\n"
)


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


def _write(text: str) -> None:
    os.write(2, text.encode())


def _fail(text: str, error: type[BaseException] = ValueError) -> None:
    with pytest.raises(error):
        _write_and_raise(text, error)


@hold_panics()
def _write_and_raise(text: str, error: type[BaseException]) -> None:
    _write(text)
    raise error


def test_output_is_passed_on_if_nothing_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with hold_panics():
        _write(f"one\n{PANIC}")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == f"one\n{PANIC}"
    _write("two\n")
    assert capfd.readouterr().err == "two\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_panic_is_left_out_if_an_error_is_raised(
    capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    _fail(f"one\n{PANIC}{PANIC}", error)
    _write("two\n")
    assert capfd.readouterr().err == "one\ntwo\n"
    _fail("a thread that panicked at noon\n")
    assert capfd.readouterr().err == "a thread that panicked at noon\n"


def test_debugging_shows_everything(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    _fail(PANIC)
    assert capfd.readouterr().err == PANIC


def test_nested_blocks_and_blocks_in_other_threads(capfd: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=_fail, args=(f"{number}\n",)) for number in range(20)]
    with hold_panics():
        for thread in threads:
            thread.start()
        with hold_panics():
            _write("inner\n")
        for thread in threads:
            thread.join()
        assert capfd.readouterr().err == ""
    expected = sorted(["inner", *map(str, range(20))])
    assert sorted(capfd.readouterr().err.splitlines()) == expected
    threads = [threading.Thread(target=_fail, args=(f"{number}\n",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(capfd.readouterr().err.splitlines()) == sorted(map(str, range(20)))


def test_a_process_without_stderr() -> None:
    lines = [
        "import os",
        "from codebrush.search.native_stderr import hold_panics",
        "os.close(2)",
        "with hold_panics():",
    ]
    code = "\n".join([*lines, "    print('done')"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_what_a_child_writes_after_the_block_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with hold_panics():
        child = subprocess.Popen(["sh", "-c", "echo early >&2; read line; echo late >&2"], stdin=subprocess.PIPE)
        _write("inner\n")
    assert set(capfd.readouterr().err.splitlines()) <= {"early", "inner"}
    child.communicate(b"\n")
    lines: list[str] = []
    deadline = time.monotonic() + 30
    while "late" not in lines and time.monotonic() < deadline:
        lines += capfd.readouterr().err.splitlines()
        time.sleep(0.01)
    assert "late" in lines
