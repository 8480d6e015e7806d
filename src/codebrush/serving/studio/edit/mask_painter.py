"""The mask painter: a picture to paint on, and what was painted as a mask of the picture's size."""

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from codebrush.data.decoding.images import decode_image
from codebrush.data.masks import LEAST_WHITE, mask_layer, white_where_clear
from codebrush.errors import ImageError
from codebrush.serving.api.embeddings import data_url
from codebrush.serving.job import png_bytes

SHOWN = 512  # pixels of the longer side on which is painted, at least
MOST_SHOWN = 1024
WHITE, CLEAR = "white", "clear"  # what changes of a mask that is a file
OF = re.compile(r";of=(\w*)")  # where what is painted names the file of its picture
UNSEEN = "cb-unseen"  # CSS class: what Gradio hides is shown again when the group around it is
TEMPLATE = """<div class="cb-mask" hidden>
<div class="cb-tools" role="toolbar" aria-label="Mask">
<button type="button" class="cb-small" data-tool="brush" aria-pressed="true">Brush</button>
<button type="button" class="cb-small" data-tool="eraser" aria-pressed="false">Eraser</button>
<label>Width <input type="range" min="2" max="60" value="16"></label>
<button type="button" class="cb-small" data-tool="undo">Undo</button>
<button type="button" class="cb-small" data-tool="invert">Invert</button>
<button type="button" class="cb-small" data-tool="clear">Clear</button>
</div>
<div class="cb-canvas"><img alt="The picture that is edited"><canvas tabindex="0" role="application"
aria-label="Mask: paint what is to change. Arrow keys move the brush, space paints, shift and an arrow paint a line.">
</canvas>
<span class="cb-cursor" aria-hidden="true"></span></div>
</div>"""


class MaskPainter:
    """Its components, built where it is made: `canvas`, whose value is that of `begun`, and `painted`, what it says."""

    def __init__(self) -> None:
        script = (Path(__file__).parent / "mask.js").read_text()
        self.canvas = gr.HTML(begun(None, None), html_template=TEMPLATE, js_on_load=script, elem_id="mask")
        self.painted = gr.Textbox("", elem_classes=UNSEEN, elem_id="mask-data", label="Painted mask")


def begun(path: str | None, picture: Image.Image | None) -> dict[str, Any]:
    """The value of the canvas for the picture in a file, upright. With another value it is empty again."""
    if path is None or picture is None:
        return {"picture": ""}
    shown = picture.convert("RGBA") if picture.has_transparency_data else picture.convert("RGB")
    longest = max(shown.size)
    scale = max(1, SHOWN // longest) if longest < MOST_SHOWN else MOST_SHOWN / longest
    size = max(1, round(scale * shown.width)), max(1, round(scale * shown.height))
    shown = shown.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    return {"picture": url_of(shown), "file": _name_of(path)}  # the same picture in another file begins again, too


def _name_of(path: str) -> str:
    """A name for a file that does not say where it is."""
    return hashlib.sha256(path.encode()).hexdigest()


def url_of(picture: Image.Image) -> str:
    """A picture as a PNG in a URL."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(picture)).decode()}"


def painted_mask(text: str, path: str, size: tuple[int, int]) -> Image.Image | None:
    """What was painted as a mask (mode L) of the `size` of the picture in a file, white where it changes; None if
    nothing was, or on another picture, as long as the canvas does not show this one yet.

    Half-transparent strokes count as what they are nearer to.

    Raises:
        Problem, ImageError: if `text` is not what the canvas says.
    """
    if not text:
        return None
    of = OF.search(text.partition(",")[0])
    if of is not None and of[1] != _name_of(path):
        return None
    layer = decode_image(data_url(text, "mask"), keep_mode=True, max_pixels=MOST_SHOWN**2)
    alpha = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BOX)
    return alpha.point([255 if level >= LEAST_WHITE else 0 for level in range(256)])


def mask_of_file(path: str, reads: str, size: tuple[int, int], max_pixels: int) -> Image.Image:
    """The mask in a file, of which the white part changes, or the clear one.

    Raises:
        ImageError: if it is no picture, or not of the picture's size.
    """
    picture = decode_image(Path(path).read_bytes(), keep_mode=True, max_pixels=max_pixels)
    if picture.size != size:
        theirs, ours = "{} x {}".format(*picture.size), "{} x {}".format(*size)
        raise ImageError(f"the mask has {theirs} pixels and the picture {ours}: make them the same size")
    return white_where_clear(picture) if reads == CLEAR else mask_layer(picture)


def clear_where_white(mask: Image.Image) -> bytes:
    """A mask (mode L) as a request of the API has it: a PNG that is transparent where the picture changes."""
    sent = Image.new("LA", mask.size)
    sent.putalpha(mask.point([0 if level >= LEAST_WHITE else 255 for level in range(256)]))
    file = io.BytesIO()
    sent.save(file, "PNG")
    return file.getvalue()
