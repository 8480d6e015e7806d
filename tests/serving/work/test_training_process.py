"""The process of a training ends with all that it has started: when it is stopped, and when its server is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from codebrush.serving.work.training import end_all, interrupt

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs sessions")
# Starts a process of its own, says its id, and waits.
STARTS = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); "


def began(code: str, *command: str, **options: object) -> tuple["subprocess.Popen[bytes]", int]:
    """A process that runs `code` in a session of its own, and the id of the one that it has started."""
    child = subprocess.Popen(
        [sys.executable, *(command or ("-c", code))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True, **options,
    )  # fmt: skip
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def is_gone(process: int) -> bool:
    """Whether a process has ended, which it does within a minute."""
    for _ in range(1200):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_a_stopped_training_has_started_ends_with_it() -> None:
    saves = f"import time\ntry:\n    {STARTS}time.sleep(600)\nexcept KeyboardInterrupt:\n    sys.exit(7)"
    child, started = began(saves)
    interrupt(child)
    assert child.returncode == 7  # it was not killed: it has saved
    assert not is_gone_now(started)
    end_all(child)
    assert is_gone(started)


def test_one_that_does_not_stop_is_killed_with_all_it_has_started() -> None:
    child, started = began(STARTS + "import time, signal; signal.signal(2, signal.SIG_IGN); time.sleep(600)")
    end_all(child)
    assert child.returncode == -signal.SIGKILL
    assert is_gone(started)


def is_gone_now(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_nothing_goes_on_when_the_server_is_gone(tmp_path: Path) -> None:
    # `codebrush` of this folder, which is what `attached` runs there.
    package = tmp_path / "codebrush"
    (package / "serving" / "work").mkdir(parents=True)
    from codebrush.serving.work import attached

    (package / "__init__.py").write_text("")
    (package / "serving" / "__init__.py").write_text("")
    (package / "serving" / "work" / "__init__.py").write_text("")
    (package / "serving" / "work" / "attached.py").write_text(Path(attached.__file__).read_text())
    (package / "__main__.py").write_text(STARTS + "import time; time.sleep(600)")
    module, alone = "codebrush.serving.work.attached", {**os.environ, "PYTHONPATH": ""}
    child, started = began("", "-m", module, cwd=tmp_path, env=alone)
    assert child.stdin is not None
    child.stdin.close()  # as the system does for a server that was killed
    assert child.wait(60)
    assert is_gone(started)
