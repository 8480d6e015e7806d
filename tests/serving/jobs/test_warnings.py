"""What the package warns of reaches the caller whose request it is about, and nobody else."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs the extra "serve"')
pytest.importorskip("uvicorn", reason='needs the extra "serve"')
pytest.importorskip("sqlalchemy", reason='needs the extra "serve"')

from codebrush import Codebrush
from codebrush.serving.job import Job
from codebrush.serving.jobs.store import Store
from codebrush.warned import heard, warn
from engine_helpers import ended, guided, make_engine, request, wait_until

UNREAD = 'the pack cannot read "круг"'
LONG = "a red circle " * 20


def post(url: str, body: dict[str, Any]) -> Any:
    sent = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(sent, timeout=60) as reply:
        return reply.read().decode() if body.get("stream") else json.loads(reply.read())


def test_each_of_a_batch_hears_of_its_own_prompt(served_brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(served_brush, tmp_path)
    prompts = ["a red круг", "a blue square", LONG]
    jobs = [engine.submit("generate", "micro", request(seed, prompt), "me") for seed, prompt in enumerate(prompts)]
    engine.start()
    try:
        unread, none, long = [ended(job).warnings for job in jobs]
    finally:
        engine.stop()
    assert engine.metrics.text().count(b"codebrush_batch_jobs_sum 3.0") == 1  # they were drawn together
    assert [text[: len(UNREAD)] for text in unread] == [UNREAD]
    assert none == []
    assert ["tokens: only the first" in text for text in long] == [True]
    kept = Store(tmp_path)
    assert Job.of_row(kept.find(jobs[0].id) or {}, tmp_path).warnings == unread
    kept.close()


def test_a_guided_run_warns_before_it_ends(served_brush: Codebrush, tmp_path: Path) -> None:
    engine = make_engine(served_brush, tmp_path)
    job = engine.submit("generate", "micro", guided(prompt="a red круг", steps=2000), "me")
    engine.start()
    try:
        assert wait_until(job, lambda job: job.warnings).state == "running"
        engine.cancel(job)
        assert UNREAD in ended(job).warnings[0]
    finally:
        engine.stop()


def test_replies_events_and_jobs_say_it(server: tuple[str, Any]) -> None:
    url, asked = server[0], {"prompt": "a red круг", "rerank": 1, "seed": 1}
    reply = post(f"{url}/v1/images/generations", asked)
    assert UNREAD in reply["warnings"][0]
    with urllib.request.urlopen(f"{url}/v1/jobs/{reply['job']}", timeout=60) as job:
        assert json.loads(job.read())["warnings"] == reply["warnings"]
    events = post(f"{url}/v1/images/generations", {**asked, "stream": True})
    assert json.loads(events.rpartition("data: ")[2])["warnings"] == reply["warnings"]
    assert post(f"{url}/v1/images/generations", {**asked, "prompt": "a red circle"})["warnings"] == []
    assert "tokens: only the first" in post(f"{url}/v1/embeddings", {"input": [LONG]})["warnings"][0]


def test_without_a_listener_it_is_a_warning_of_python() -> None:
    texts = []
    with heard(lambda text, number: texts.append((text, number))):
        warn("heard")
    assert texts == [("heard", None)]
    with pytest.warns(UserWarning, match="not heard") as caught:
        warn("not heard")
    assert caught[0].filename == __file__
