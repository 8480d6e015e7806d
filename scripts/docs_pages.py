"""Hook of mkdocs: the pages of the site that are generated when it is built, and are not in the repository.

- one page a command, from the command line's own declarations;
- the changelog, contributing, security and upgrading from the repository's root, the table of speed, and the model
  card of the built-in pack, with their links turned to pages of the site.
"""

import re
from html import escape
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from codebrush.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "src/codebrush/packs/emoji"
FROM_ROOT = {  # page of the site -> file of the repository
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "upgrading.md": "UPGRADING.md",
    "speed.md": "benchmarks/results.md",
    "speed-amx.md": "benchmarks/results-amx.md",
}
HOW_TO = (
    "tutorials/first-picture", "tutorials/own-pack", "tutorials/vqgan-clip", "tutorials/published-weights",
    "tutorials/search-photographs", "tutorials/studio", "tutorials/many-machines", "guidance", "flow", "editing",
    "upscaling", "training", "data", "published", "understanding", "cluster", "studio", "api",
)  # fmt: skip
FLAG, WHOLE = re.compile(r"(?<!\S)--?[a-z][\w-]*"), r'<span class="flag">\g<0></span>'
ARGUMENTS, OPTIONS = "Arguments", "Options"
FLAG_IN_BLOCK = re.compile(r"(?<=[\s>])--?[a-z][\w-]*(?![^<]*>)")  # not in a tag
CODE, PARTED = re.compile(r"<code>.*?</code>"), re.compile(r"(?:[/|_(]|::|&#124;)(?=\w)(?![^<]*>)")
HEADS = {ARGUMENTS: "argument", OPTIONS: "option"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give each command a place in the navigation."""
    pages = ["reference/cli/index.md", *(page_of(name) for name in COMMANDS)]
    for section in config.nav or []:
        if isinstance(section, dict) and section.get("Commands") == []:
            section["Commands"] = pages
    return config


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let the search show pages that explain before those that tell how the project came to be."""
    if page.file.src_uri.startswith(("decisions/", "log.", "changelog.", "contributing.")):
        page.meta["search"] = {"boost": 0.3}
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the pictures of the model card."""
    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    for picture in sorted(PACK.glob("*.png")):
        files.append(File.generated(config, f"model-card/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Refuse items of lists that became text. Keep flags whole: a browser would break a line between the dashes and the
    name. In narrow cells, say where code may be broken.

    Raises:
        PluginError: for such an item.
    """
    without_code = re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)
    if lost := [each for each in re.findall(r"<p>(.*?)</p>", without_code, re.DOTALL) if re.search("^- ", each, re.M)]:
        raise PluginError(f"an item of a list became text; what stands before it needs four blanks: {lost[0][:200]}")
    html = re.sub(r"<pre.*?</pre>", lambda block: code_block(block[0]), html, flags=re.DOTALL)
    html = re.sub(r"<code>([^<]+)</code>", lambda found: f"<code>{FLAG.sub(WHOLE, found[1])}</code>", html)
    return re.sub(
        r"<td\b.*?</td>", lambda cell: CODE.sub(lambda code: breakable(code[0]), cell[0]), html, flags=re.DOTALL
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Leave out the page for missing pages: it finds its style only where the site is the root of a host."""
    Path(config.site_dir, "404.html").unlink()


def breakable(code: str) -> str:
    """Code in a table, which may go on in the next line between the parts of a path, a name or a choice."""
    return PARTED.sub(r"\g<0><wbr>", code)


def code_block(html: str) -> str:
    """A block of code with flags kept whole, and comments behind something marked, to be indented where they wrap."""
    lines = []
    for line in FLAG_IN_BLOCK.sub(WHOLE, html).split("\n"):
        before, comment, after = line.partition('<span class="c1">')
        beside = comment and re.sub(r"<[^>]*>", "", before).strip()
        lines.append(before + (comment.replace("c1", "c1 beside") if beside else comment) + after)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Each generated page by its path in the site."""
    made = {page: for_site((ROOT / file).read_text(encoding="utf-8")) for page, file in FROM_ROOT.items()}
    card = (PACK / "README.md").read_text(encoding="utf-8")
    made["model-card.md"] = re.sub(r"\]\((\w+\.png)\)", r"](model-card/\1)", card)
    commands = typer.main.get_command(app)
    made["reference/cli/index.md"] = overview(commands)
    for name in COMMANDS:
        command = commands.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
        made[page_of(name)] = command_page(command, name)
    return made


def page_of(name: str) -> str:
    """The path of a command's page: with the program's name, as one is called index, which is the page of a folder."""
    return f"reference/cli/codebrush-{name}.md"


def for_site(text: str) -> str:
    """Text of a file in the repository's root, with links to pages of the site, named by their titles."""
    for page, file in FROM_ROOT.items():
        text = text.replace(f"]({file})", f"]({page})")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[[\w/-]+\.md\]\(([\w/-]+)\.md", lambda link: f"[{title_of(link[1])}]({link[1]}.md", text)


def overview(commands: Any) -> str:
    """The page of all commands, each with its first sentence."""
    lines = [
        "# Commands",
        "",
        "Every command takes `--help`, and all but `serve` and groups of commands `--json`. `codebrush --version` "
        "prints the version.",
        "",
    ]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [
        f"| [{name}]({Path(page_of(name)).name}) | {cell(first_line(commands.commands[name]))} |" for name in COMMANDS
    ]
    return "\n".join(lines) + "\n"


def first_line(command: Any) -> str:
    """The first paragraph of a command's help."""
    return " ".join((command.help or "").strip().split("\n\n")[0].split())


def command_page(command: Any, name: str) -> str:
    """A command's page: what it does, its arguments and options by topic, its subcommands, and where to read on."""
    parts = [f"# codebrush {name}", *sections(command, f"codebrush {name}", "##")]
    known = [page for page in HOW_TO if re.search(rf"codebrush {name}\b", (ROOT / f"docs/{page}.md").read_text())]
    if known:
        titles = "\n".join(f"- [{title_of(page)}](../../{page}.md)" for page in known)
        parts.append(f"## Read on\n\n{titles}")
    return "\n\n".join(parts) + "\n"


def title_of(page: str) -> str:
    """The title of a page of the site that is not generated from the command line."""
    text = (ROOT / FROM_ROOT.get(f"{page}.md", f"docs/{page}.md")).read_text(encoding="utf-8")
    return text[text.index("# ") + 2 :].partition("\n")[0]


def sections(command: Any, path: str, level: str) -> list[str]:
    """A command's help as Markdown, and those of its subcommands below it."""
    context = typer.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"```text\n{path} {usage}\n```", prose(command.help or "")]
    topics: dict[str, list[str]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            usual = ARGUMENTS if param.param_type_name == "argument" else OPTIONS
            topics.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(row(*record))
    for topic in sorted(topics, key=lambda topic: [ARGUMENTS, OPTIONS, topic].index(topic)):
        head = f"| {HEADS.get(topic, HEADS[OPTIONS])} | meaning |\n|---|---|\n"
        parts.append(f"{level} {topic}\n\n{head}" + "\n".join(topics[topic]))
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            parts += [f"{level} {path} {name}", *sections(child, f"{path} {name}", level + "#")]
    return parts


def prose(text: str) -> str:
    """Help as Markdown: what looks like HTML, a link or emphasis stays text, and what stands in backticks is code."""
    text = escape("\n\n".join(" ".join(part.split()) for part in text.split("\n\n")), quote=False)
    parts = text.split("`")
    parts[::2] = [
        re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"<code>\g<0></code>", re.sub(r"([\\\[\]*_])", r"\\\1", part))
        for part in parts[::2]
    ]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return "".join(parts)


def row(flag: str, text: str) -> str:
    """A line of a table of options."""
    code = escape(flag, quote=False).replace("|", "&#124;")
    return f"| <code>{code}</code> | {cell(text)} |"


def cell(text: str) -> str:
    """Text within a table."""
    return prose(text).replace("|", "&#124;")
