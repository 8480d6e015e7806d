"""Inputs that nobody would write: each reader answers with a value or one of the package's own errors in one line.

It does so within five seconds and without taking much memory. A few inputs of each reader here, the same in each run;
some seconds of each, of another seed each time, in `make test-long`; `python tests/faults/fuzzing.py --minutes 25` is
the long run.
"""

import os
import re
import signal
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzz_targets import TARGETS
from fuzzing import Part, Target, fault, fuzz, read_all
from hypothesis import settings

from codebrush.errors import DataError

COUNTS = {"parser": 150, "picture": 400, "source": 4, "model": 4, "server": 10}  # by the kind of reader


def test_a_few_inputs_of_each_reader(processes: Any, input_seed: int) -> None:
    parts = [Part(name, COUNTS[target.kind], 120) for name, target in TARGETS.items()]
    read, found = fuzz(processes, parts, input_seed)
    assert found == [], f"--input-seed {input_seed}"
    assert read == {part.target: part.count for part in parts}


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_each_reader_for_some_seconds(processes: Any, name: str, input_seed: int, record_property: Any) -> None:
    read, found = fuzz(processes, [Part(name, 1 << 40, 6 * TARGETS[name].share)], input_seed)
    record_property("inputs", read[name])
    print(f"{name}: {read[name]:,} inputs of --input-seed {input_seed}")
    assert found == [], f"--input-seed {input_seed}"


def test_the_usual_run_can_be_repeated_and_the_long_one_says_its_seed() -> None:
    rules = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    usual, long = (re.findall(rf"^{name}: .*\n(.*)", rules, re.MULTILINE)[0] for name in ("test", "test-long"))
    assert "seed" not in usual
    assert "--input-seed $$(date +%s)" in long
    assert settings().derandomize


def broken(data: bytes) -> None:
    """A reader with every fault."""
    match data:
        case b"raises":
            raise KeyError("x")
        case b"two lines":
            raise DataError("one\ntwo")
        case b"memory":
            bytearray(60 * 1024**2)
        case b"hangs":
            while True:
                pass
        case b"crashes":
            os.kill(os.getpid(), signal.SIGSEGV)


def test_faults_are_seen() -> None:
    assert fault(broken, b"nothing") is None
    assert str(fault(broken, b"raises")).startswith("KeyError at no line of the package")
    assert "not one line" in str(fault(broken, b"two lines"))


def in_turn(parts: list[Part], seed: int, at: Any, finds: Any) -> None:
    TARGETS["broken"] = Target("broken", "parser", lambda _: ([b""], broken))
    # little memory, as a busy machine takes its time to hand out much
    fuzzing.MOST_MEMORY, fuzzing.LONGEST = 40 * 1024**2, 1.0
    fuzzing.input_of = lambda *given: INPUTS[given[-1]]
    read_all(parts, seed, at, finds)


INPUTS = [b"nothing", b"hangs", b"memory", b"crashes", b"raises", b"nothing"]


def test_what_ends_a_process_is_found_and_the_rest_goes_on(processes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "read_all", in_turn)
    read, found = fuzz(processes, [Part("broken", 6, 60), Part("conditions", 1, 60)])
    assert read == {"broken": 6, "conditions": 1}
    reasons = ["over 5 s", "takes", "the process ended with -11", "KeyError"]
    assert [find.number for find in found] == [1, 2, 3, 4]
    for find, reason in zip(found, reasons, strict=True):
        assert find.reason.startswith(reason)


def test_an_input_follows_from_its_number() -> None:
    target = Target("any", "parser", lambda _: ([], bytes), [b"word"])
    made = [fuzzing.input_of(target, [b"one seed", b"and another"], 0, number) for number in range(300)]
    assert made == [fuzzing.input_of(target, [b"one seed", b"and another"], 0, number) for number in range(300)]
    assert len(set(made)) > 200
