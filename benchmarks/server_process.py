"""A real `codebrush serve` on a free port of this machine, its log, its memory and its processor time."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
MB = 1024**2


class ServerProcess:
    """Started at once, without the page; `data` outlives it. `arguments` are those of the command line."""

    def __init__(self, data: Path, *arguments: str) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.data, self.log = data, data / f"log_{time.monotonic_ns()}.jsonl"
        command = "from codebrush.cli.main import main; main()"
        asked = ["serve", "--port", "0", "--no-page", "--data", str(data), *arguments]
        with self.log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, "-c", command, *asked], stderr=file)
        while not (serving := [each for each in self.events() if each["event"] == "serving"]):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)
        self.url: str = serving[0]["address"]

    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def call(self, path: str, body: Any = None) -> Any:
        """GET, or with a body POST: the reply; HTTPError for one that is not 2xx."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=900) as reply:
            return json.loads(reply.read())

    def resident_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MB

    def cpu_seconds(self) -> float:
        """Processor time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end: the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(300)
