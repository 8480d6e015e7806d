"""Kills a server in the middle of each kind of job, starts it again, and says what became of every job.

    python benchmarks/serve_kills.py [--signals KILL,TERM,INT] [--rounds 0,1,2,3,4,5,6] [--pack emoji]

Each round lets jobs of different queues run, such as one that draws and one that reads, ends the server in
the middle of them, starts another in the same folder and waits until each job has ended. What was drawn is drawn once
more without a disturbance, and compared pixel by pixel. Prints a Markdown table; fails if a job is forgotten or is
another picture. On SIGTERM and Ctrl-C (INT) the server ends in order: it fails then also if a file is half written.
"""

import argparse
import base64
import io
import json
import signal
import sqlite3
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from server_process import ServerProcess

READING = ("embed", "classify", "caption", "ask", "explain", "index")  # in a second or so
APPLE = {"prompt": "a red apple", "seed": 3, "n": 1}


def picture(side: int, number: int = 0) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse((side // 5, side // 5, side - side // 4, side - side // 5), fill=(200, number, 60))
    return image


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def multipart(fields: dict[str, Any], image: Image.Image) -> tuple[bytes, str]:
    """A form with a picture, and its content type."""
    file = io.BytesIO()
    image.save(file, "PNG")
    parts = [f'--end\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()]
    head = b'--end\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return b"".join([*parts, head, file.getvalue(), b"\r\n--end--\r\n"]), "multipart/form-data; boundary=end"


def post(server: ServerProcess, path: str, body: Any) -> Any:
    import urllib.request

    content, kind = body if isinstance(body, tuple) else (json.dumps(body).encode(), "application/json")
    request = urllib.request.Request(f"{server.url}{path}", content, {"content-type": kind})
    with urllib.request.urlopen(request, timeout=900) as reply:
        return json.loads(reply.read())


def rows(server: ServerProcess) -> dict[str, dict[str, Any]]:
    """The jobs as they are kept."""
    with sqlite3.connect(f"file:{server.data / 'jobs.sqlite'}?mode=ro", uri=True) as connection:
        found = connection.execute("SELECT id, kind, state, attempts, result, request FROM jobs").fetchall()
    names = ("id", "kind", "state", "attempts", "result", "request")
    return {row[0]: dict(zip(names, row, strict=True)) for row in found}


def rounds(made: str, library: str) -> list[list[tuple[str, str, Any]]]:
    """For each round the requests: a name, a path and a body. `made` is a data URL of a picture that Codebrush made."""
    small, large = picture(64), [data_url(picture(192, number)) for number in range(16)]
    again = {"wait": False}
    form = {**APPLE, "rerank": 1, "wait": "false"}
    labels = [f"a thing of the number {number}" for number in range(1000)]
    return [
        [
            ("generate by sampling", "/v1/images/generations", {**APPLE, "rerank": 2, **again}),
            ("embed", "/v1/embeddings", {"input": [*large, *(f"{word} and some more words" for word in labels)]}),
        ],
        [
            ("generate, guided", "/v1/images/generations", {**APPLE, "method": "guide", "steps": 40, "cutouts": 4,
                                                            "init": "random", **again}),
            ("classify", "/v1/classify", {"image": large, "labels": labels}),
        ],
        [
            ("edit", "/v1/images/edits", multipart(form, small)),
            ("caption", "/v1/caption", {"image": large, "n": 10}),
        ],
        [
            ("vary", "/v1/images/variations", multipart({n: v for n, v in form.items() if n != "prompt"}, small)),
            ("ask", "/v1/ask", {"image": large, "question": "what colour is it?"}),
        ],
        [
            ("upscale", "/v1/upscale", {"image": large[:4], "scale": 4, **again}),
        ],
        [
            ("explain", "/v1/explain", {"image": made, "text": "a red apple", "method": "occlusion"}),
        ],
        [
            ("train", "/v1/train", {"source": library, "name": "circles", "budget": "120s"}),
            ("replay", "/v1/replay", {"image": made, **again}),
            ("index", "/v1/library/index", {"folder": library}),
        ],
    ]  # fmt: skip


def begin(server: ServerProcess, path: str, body: Any) -> str:
    """Send a request, and return its job's id when it runs."""
    before = set(rows(server))
    threading.Thread(target=_sent, args=(server, path, body), daemon=True).start()
    while True:
        for job, row in rows(server).items():
            if job not in before and row["state"] != "queued":
                return job
        time.sleep(0.02)


def _sent(server: ServerProcess, path: str, body: Any) -> None:
    with suppress(OSError):  # the server is killed before it answers
        post(server, path, body)


def middle(server: ServerProcess, job: str, name: str) -> str:
    """Wait until a job is in the middle, and return where that is. What only reads is there as soon as it runs."""
    while True:
        row = rows(server)[job]
        if name in READING or row["state"] != "running":
            return row["state"]
        now = server.call(f"/v1/jobs/{job}")
        step, of = now["progress"]["step"], now["progress"]["of"]
        if name == "train" and (saved := [*server.data.glob("packs/circles.work/*/checkpoint.pt")]):
            return f"{step} s of {of} s, its stage {saved[0].parent.name} saved"
        if name != "train" and step >= (25 if name == "generate, guided" else 1):  # past its first checkpoint
            return f"step {step} of {of}"
        time.sleep(0.05)


def pixels(server: ServerProcess, job: dict[str, Any]) -> list[bytes]:
    import urllib.request

    found = []
    for each in job["data"]:
        with urllib.request.urlopen(f"{server.url}/files/{each['url'].partition('/files/')[2]}", timeout=300) as reply:
            found.append(Image.open(io.BytesIO(reply.read())).convert("RGBA").tobytes())
    return found


def end_of(server: ServerProcess, job: str) -> dict[str, Any]:
    while (now := server.call(f"/v1/jobs/{job}"))["state"] in ("queued", "running"):
        time.sleep(0.2)
    return now


def became(server: ServerProcess, job: str, path: str, body: Any) -> str:
    """What a job is after the new start, and whether it is the picture that it is without a disturbance."""
    taken = any(each["event"] == "job resumed" and each["job"] == job for each in server.events())
    now, row = end_of(server, job), rows(server)[job]
    if not taken:
        return f"{now['state']} before the end"
    if now["state"] != "done":
        return f"{now['state']}: {now['error']['message'] if now['error'] else ''}"
    losses = json.loads(row["result"]).get("losses", [])
    how = f"resumed, {len(losses)} steps were left" if losses and len(losses) < 40 else "done again"
    if now["kind"] in ("index", "train"):
        how = "taken up again, done"
        made = [each["id"] for each in server.call("/v1/models")["data"]]
        assert now["kind"] == "index" or body["name"] in made, f"{made} lack what was trained"
    if now["data"]:
        other = end_of(server, post(server, path, body)["id"])
        assert pixels(server, now) == pixels(server, other), f"{job} is another picture"
        how += ", the same pixels"
    return how


def run(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    number = getattr(signal, f"SIG{name}")
    library = folder / "circles"
    library.mkdir(parents=True)
    for index in range(200):
        picture(64, index).save(library / f"{index:02d}.png")
        (library / f"{index:02d}.txt").write_text(f"a circle of the shade {index}")
    options = ["--pack", arguments.pack, "--library", str(library)]
    server = ServerProcess(folder / "data", *options)
    made = server.call("/v1/images/generations", {**APPLE, "rerank": 2})["data"][0]["b64_json"]
    asked = rounds(f"data:image/png;base64,{made}", "circles")
    for which in arguments.rounds:
        jobs, places = [], []
        for kind, path, body in asked[which]:  # what takes the least time comes last
            jobs.append(begin(server, path, body))
            places.append(middle(server, jobs[-1], kind))
        status = server.end(number)
        assert status == (-number if name == "KILL" else 0), f"it ended with {status}"
        half = [*server.data.rglob(".*.part")] if name != "KILL" else []  # a killed one's are removed later
        assert not half, f"it left {half}"
        known = rows(server)
        server = ServerProcess(folder / "data", *options)
        for job, place, (kind, path, body) in zip(jobs, places, asked[which], strict=True):
            if job not in known:
                what = "answered before the end"
            else:
                what = became(server, job, path, body)
            print(f"| {kind} | SIG{name} | {place} | {what} |", flush=True)
    server.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=lambda text: text.split(","), default=["KILL", "TERM"])
    parser.add_argument("--rounds", type=lambda text: [int(part) for part in text.split(",")], default=list(range(7)))
    parser.add_argument("--pack", default="emoji")
    arguments = parser.parse_args()
    print("| job | signal | it was at | after the next start |\n|---|---|---|---|")
    for name in arguments.signals:
        with tempfile.TemporaryDirectory() as folder:
            run(name, arguments, Path(folder))


if __name__ == "__main__":
    main()
