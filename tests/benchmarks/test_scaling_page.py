"""The page of the plan has the figures that the script prints."""

import subprocess
import sys
from pathlib import Path

import pytest
from scaling_devices import DEVICES
from scaling_model import HOSTS, main, set_price, tables
from scaling_page import Table, number, written

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/scaling.md"


def test_the_page_has_the_tables_of_the_script():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, tables()) == page, "run python benchmarks/scaling_model.py --docs docs/scaling.md"


def test_the_page_has_no_other_tables():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- table: ") == page.count("<!-- end of table -->") == len(tables())


def test_the_script_runs_by_itself():
    script = [sys.executable, str(ROOT / "benchmarks/scaling_model.py"), "--check"]
    said = subprocess.run(script, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "RN50x64 on WIT" in said
    assert "Why some are missed" in said


def test_prices_change_what_it_costs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DEVICES, "a100-80", DEVICES["a100-80"])
    monkeypatch.setitem(HOSTS, "host", HOSTS["host"])

    def costs() -> dict[str, list[str]]:
        return {table.name: [cell for row in table.cells() for cell in row] for table in tables()}

    before = costs()
    for price in ("a100-80=3.2", "host=9", "storage=50"):
        set_price(price)
    after = costs()
    assert {name for name in before if before[name] != after[name]} == {
        "summary", "devices", "clip", "levers", "vqgan", "codes", "serving", "search", "filling", "bytes"
    }  # fmt: skip


@pytest.mark.parametrize("price", ["a100-80", "a100-80=much", "tpu=3", "host=-1", ""])
def test_a_price_that_is_none_is_one_line(price: str):
    with pytest.raises(SystemExit, match="write NAME=DOLLARS"):
        set_price(price)


def test_a_page_without_a_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("# Nothing")
    monkeypatch.setattr(sys, "argv", ["scaling_model.py", "--docs", str(page)])
    with pytest.raises(SystemExit, match="no place for the table 'summary'"):
        main()


def test_tables_are_aligned_and_rounded():
    table = Table("name", "Title", ("what", "much"), [("one", 1234.5), ("another", 0.01234)])
    assert table.text() == "Title\nwhat     much\none      1,230\nanother  0.0123"
    assert table.markdown() == "| what | much |\n| --- | --- |\n| one | 1,230 |\n| another | 0.0123 |"
    assert [number(value) for value in (0.0, 5, 99.7, 123.4, 2_000_000, 1e-5)] == [
        "0",
        "5",
        "100",
        "123",
        "2,000,000",
        "1.0e-05",
    ]
