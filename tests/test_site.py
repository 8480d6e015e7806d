"""The documentation site: its generated pages say what the command line is, and it needs no other host."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import sync_playwright

pytest.importorskip("mkdocs", reason='needs the extra "docs"')

ROOT = Path(__file__).resolve().parents[1]
SURFACE: dict[str, list[str]] = json.loads((ROOT / "tests/cli_surface.json").read_text())


# Tables at the width of a phone: those that do not scroll in a box of their own, and words in cells that are broken.
WRONG_IN_TABLES = """() => [...document.querySelectorAll(".md-typeset table")].flatMap((table) => {
  const box = table.closest(".md-typeset__scrollwrap"), found = [];
  if (!box || getComputedStyle(box).overflowX !== "auto" || box.clientWidth > innerWidth) found.push("no scrolling");
  const texts = document.createTreeWalker(table, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode())
    for (const word of text.data.matchAll(/(?<![^\\s(])\\w{2,20}(?![^\\s),])/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((each) => Math.round(each.top))).size > 1) found.push(word[0]);
    }
  return found;
})"""
SEARCHES = {  # what people look for, and a page that is to be found
    "codebook": "glossary",
    "inpaint": "editing",
    "negative prompt": "guidance",
    "seed": "glossary",
    "out of memory": "troubleshooting",
    "Slurm": "many-machines",
    "license": "glossary",
    "uninstall": "troubleshooting",
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return docs_pages().pages()


def docs_pages() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("docs_pages")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def part(page: str, command: str) -> str:
    """What a page says about one command, without its subcommands."""
    found = page.partition(f"```text\n{command} ")[2]
    return re.split(r"\n#+ codebrush ", found)[0]


def test_each_flag_of_each_command_is_on_its_page(pages: dict[str, str]) -> None:
    missing = []
    for command, flags in SURFACE.items():
        if command == "codebrush":
            continue
        page = pages[f"reference/cli/codebrush-{command.split()[1]}.md"]
        words = set(re.findall(r"[\w-]+", unescape(" ".join(re.findall(r"<code>(.*?)</code>", part(page, command))))))
        missing += [(command, flag) for flag in flags if flag.removesuffix("...") not in words]
    assert missing == []


def test_each_command_is_on_the_page_of_all(pages: dict[str, str]) -> None:
    overview = pages["reference/cli/index.md"]
    for command in {name.split()[1] for name in SURFACE if " " in name}:
        assert f"[{command}](codebrush-{command}.md)" in overview


def test_tables_hold_what_would_break_them(pages: dict[str, str]) -> None:
    lines = [line for name, page in pages.items() if "/cli/" in name for line in page.splitlines()]
    assert {line.count("|") for line in lines if line.startswith("|")} == {3}
    assert any("&#124;" in line for line in lines)  # the parts of a prompt


def test_flags_are_kept_whole_and_tags_as_they_are() -> None:
    html = (
        '<pre><span a --b><code>run <span class="n">x</span> --out-dir y\n-n 2 a-b</code></pre><code>--pack NAME</code>'
    )
    made = docs_pages().on_page_content(html)
    whole = '<span class="flag">{}</span>'
    for flag in ("--out-dir", "-n", "--pack"):
        html = html.replace(f" {flag} ", f" {whole.format(flag)} ").replace(f"\n{flag} ", f"\n{whole.format(flag)} ")
    assert made == html.replace("<code>--pack", f"<code>{whole.format('--pack')}")


def test_code_in_a_table_is_broken_between_its_parts() -> None:
    code = "<code><span a/b>tests/a_b.py::test_c</span> &lt;x|y&#124;z&gt; f(a) -&gt; /</code>"
    broken = "<code><span a/b>tests/|a_|b.py::|test_|c</span> &lt;x||y&#124;|z&gt; f(|a) -&gt; /</code>"
    broken = broken.replace("|", "<wbr>").replace("<wbr><wbr>", "|<wbr>")
    html = "<p>{0}</p><td>a/b {0}</td><pre>{0}</pre>"
    made = docs_pages().on_page_content(html.format(code))
    assert made == html.replace("<td>a/b {0}", "<td>a/b {1}").format(code, broken)


def test_comments_behind_commands_are_marked() -> None:
    alone, behind = '<span class="c1"># a</span>', '<span class="w">  </span><span class="c1"># b</span>'
    made = docs_pages().on_page_content(f"<pre><code>{alone}\nrun{behind}\n  {alone}</code></pre>")
    assert made == f"<pre><code>{alone}\nrun{behind.replace('c1', 'c1 beside')}\n  {alone}</code></pre>"


def test_pages_of_the_root_link_to_pages_of_the_site(pages: dict[str, str]) -> None:
    for name in ("changelog.md", "contributing.md", "security.md", "upgrading.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", pages[name])
        assert [link for link in links if link not in pages and not (ROOT / "docs" / link).is_file()] == []
        assert re.findall(r"\[[\w/-]+\.md\]\(", pages[name]) == []  # but by titles


@pytest.mark.long
def test_the_site_is_read_and_searched_from_files_without_another_host(tmp_path: Path) -> None:
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("needs a browser")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for path in sorted(tmp_path.rglob("*.html")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
            cut_off = (
                "[...document.querySelectorAll('pre > code')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
            )
            assert page.evaluate(cut_off) == 0, path
            assert page.evaluate(WRONG_IN_TABLES) == [], path
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto((tmp_path / "index.html").as_uri())
        for words, found in SEARCHES.items():
            page.click(".md-search__input")
            page.keyboard.press("Control+a")
            page.keyboard.type(words)
            page.wait_for_selector(f".md-search-result__item a[href*='{found}']", state="attached", timeout=60_000)
        browser.close()
    assert len(asked) > 50
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
