"""What the tabs share: the server behind them, where pictures and settings are sent, and how errors are told."""

import html
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from pydantic import ValidationError

from codebrush.errors import UsageError
from codebrush.serving.api.context import Context
from codebrush.serving.api.problems import Problem, invalid_line
from codebrush.serving.faults import fault_of

TAKES_PICTURES = "takes-pictures"  # CSS class of components that keep what is dropped on them
TOLD_SECONDS = 15.0

Values = dict[Any, Any]  # of components
Restore = Callable[[Mapping[str, Any], str], tuple[Values, list[str]]]


@dataclass
class Tab:
    """What a tab offers to the others.

    `picture` is a component that takes a picture, a `gr.Image` of type "filepath" with the CSS class TAKES_PICTURES;
    pictures of other tabs get a button that sends them there, labelled `verb`; `around` is the gr.Accordion that it is
    in, if any. `restore` returns, for the manifest of a picture made by one of `methods` and the caller, the values of
    `restored` components that would make it again, and lines about what could not be restored. `packs` is a gr.Dropdown
    of packs, kept up to date, and `pack_chosen` has for one of them the values of `pack_fields`, which depend on it.
    """

    verb: str = ""
    picture: Any = None
    around: Any = None
    methods: tuple[str, ...] = ()
    restored: list[Any] = field(default_factory=list)
    restore: Restore | None = None
    packs: Any = None
    pack_fields: list[Any] = field(default_factory=list)
    pack_chosen: Callable[[str], Values] | None = None
    item: Any = None


@dataclass
class Studio:
    """The page as far as it is built: `root` is the gr.Tabs, `notice` a gr.HTML above them, `tabs` are those so far."""

    context: Context
    root: Any
    notice: Any
    tabs: dict[str, Tab] = field(default_factory=dict)
    _later: list[Callable[[], None]] = field(default_factory=list)

    def later(self, wire: Callable[[], None]) -> None:
        """Call `wire` within the page when all tabs are built: for events that lead from one tab to another."""
        self._later.append(wire)

    def finish(self, page: Any) -> None:
        """Call what waits for all tabs, and let the lists of packs follow those that are trained or deleted."""
        for tab in self.tabs.values():
            if tab.packs is not None:
                tab.item.select(self.pack_list, None, tab.packs, show_progress="hidden")
                page.load(self.pack_list, None, tab.packs, show_progress="hidden")
        for wire in self._later:
            wire()

    def pack_list(self) -> Any:
        """The update of a list of packs."""
        packs = list(self.context.engine.packs)
        return gr.Dropdown(packs, visible=len(packs) > 1)

    def with_pack(self, tab: str, pack: str) -> Values:
        """The values that show a tab with a pack chosen; its outputs are `root`, and the tab's `packs` and
        `pack_fields`."""
        found = self.tabs[tab]
        chosen = gr.Dropdown(list(self.context.engine.packs), value=pack, visible=True)
        more = {} if found.pack_chosen is None else found.pack_chosen(pack)
        return {self.root: self.show(tab), found.packs: chosen, **more}

    def show(self, tab: str) -> Any:
        """The update of `root` that shows a tab."""
        return gr.Tabs(selected=tab)

    def cancel(self, job: Any, request: gr.Request) -> None:
        """Cancel a job of the caller, by its id, if it has not ended."""
        found = self.context.engine.find(str(job), owner_of(request))
        if found is not None:
            self.context.engine.cancel(found)

    def sent(self, tab: str, content: bytes) -> Values:
        """The values that show a picture in a tab that takes one; they are of `receivers(tab)`."""
        found = self.tabs[tab]
        opened = {} if found.around is None else {found.around: gr.Accordion(open=True)}
        return {self.root: self.show(tab), found.picture: cached(content), **opened}

    def receivers(self, tab: str) -> list[Any]:
        """The outputs of an event that sends a picture to a tab."""
        found = self.tabs[tab]
        return [each for each in (self.root, found.picture, found.around) if each is not None]

    def takers(self) -> dict[str, Tab]:
        """The tabs that take a picture, by id."""
        return {name: tab for name, tab in self.tabs.items() if tab.picture is not None}

    @property
    def restored(self) -> list[Any]:
        """The outputs of an event that restores, when all tabs are built."""
        return [self.root, self.notice, *(each for tab in self.tabs.values() for each in tab.restored)]

    def restore(self, manifest: Mapping[str, Any], owner: str) -> Values:
        """The values that show how a picture was made in the tab that can make it again.

        Raises:
            UsageError: if no tab can.
        """
        method = manifest.get("method")
        for name, tab in self.tabs.items():
            if tab.restore is not None and method in tab.methods:
                values, lost = tab.restore(manifest, owner)
                line = "This is how the picture was made. The form is filled in with it." + "".join(
                    f" {each}." for each in lost
                )
                return {self.root: self.show(name), self.notice: note(line), **values}
        raise UsageError(f"the picture was made by the method '{method}', which this page has no tab for")


def note(line: str) -> str:
    """HTML of a line that is read out."""
    return f'<p class="cb-note" role="status">{html.escape(line)}</p>'


def cached(content: bytes, name: str = "picture.png") -> str:
    """A file that components may show and read, removed with the uploads when no open form has it any more."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


def owner_of(request: gr.Request) -> str:
    """The caller, as the API knows them; see `codebrush.serving.security`."""
    return request.state.owner


@contextmanager
def told(context: Context) -> Iterator[None]:
    """A context whose errors are shown on the page, as `line_of` says them, and are not in the log."""
    try:
        yield
    except Exception as error:
        raise gr.Error(html.escape(line_of(error, context)), duration=TOLD_SECONDS, print_exception=False) from None


def line_of(error: Exception, context: Context) -> str:
    """What a user is told of an error: one that they can cause as it is, without this machine's paths, of any other
    that there was one."""
    if isinstance(error, Problem):
        return error.detail
    if isinstance(error, ValidationError):
        return invalid_line(error.errors()[0])
    return fault_of(error, lambda text: context.engine.plain(_without_uploads(text)))["message"]


def _without_uploads(text: str) -> str:
    """A line in which what was sent to the page is called by its name alone."""
    return re.sub(rf"{re.escape(get_upload_folder() + os.sep)}[0-9a-f]+{re.escape(os.sep)}", "", text)
