"""How long the commands take from a cold process with the built-in pack, beside the import of PyTorch, in alternation.

    python benchmarks/cold_start.py [--rounds 5]

generate makes four pictures; classify, caption and search look at one of them, search in an index of the four. The
first round is not counted, so files are in the page cache. Prints the seconds, and the peak memory of each command.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from alternation import alternated, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    peaks: dict[str, float] = {}

    def command(name: str, *line: str) -> Callable[[], object]:
        def run() -> None:
            process = subprocess.Popen([sys.executable, *line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            said = process.stderr.read() if process.stderr else b""
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"{' '.join(line)} failed: {said.decode(errors='replace')}")
            peaks[name] = max(peaks.get(name, 0), used.ru_maxrss / 1024)

        return run

    with tempfile.TemporaryDirectory() as folder:
        pictures, index = Path(folder) / "pictures", Path(folder) / "index"
        codebrush = ("-m", "codebrush")
        prepare = (["generate", "a red apple", "--out", str(pictures)], ["index", str(pictures), "--db", str(index)])
        for line in prepare:
            subprocess.run([sys.executable, *codebrush, *line], check=True, capture_output=True)
        picture = str(next(pictures.rglob("*.png")))
        lines = {
            "generate": ["generate", "a red apple", "--out", str(Path(folder) / "again")],
            "classify": ["classify", picture, "--labels", "a red apple,a dog"],
            "search": ["search", "a red apple", "--db", str(index)],
            "caption": ["caption", picture],
        }
        for name, line in lines.items():
            ways = {
                "import torch": command("import torch", "-c", "import torch"),
                "codebrush": command(name, *codebrush, *line),
            }
            alternated(f"cold {name}", ways, given.rounds)
            print(f"cold {name}: at most {peaks[name]:.0f} MB", flush=True)
            note(title=f"cold {name}", megabytes=round(peaks[name]))


if __name__ == "__main__":
    main()
