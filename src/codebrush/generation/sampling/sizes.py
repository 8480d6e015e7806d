"""Which sizes of pictures can be drawn, from the configs of a pack: asked before a model is loaded."""

from codebrush.data.decoding.images import MAX_PIXELS
from codebrush.errors import UsageError
from codebrush.generation.options import parse_size
from codebrush.models.code_transformer import CodeTransformerConfig
from codebrush.models.flow_transformer import FlowTransformerConfig
from codebrush.models.vqgan import VQGANConfig
from codebrush.pack.pack import Pack
from codebrush.warned import warn

# Times as long that a code takes in a moving window, where nothing of the codes before can be kept: 36 s for 144x128
# and 49 s for 192x128 with the built-in pack, against 2.4 s for its own 128x128 (one candidate, CPU seconds of a core).
WINDOW_COST = 13.5


def checked_size(pack: Pack, size: str, painter: str | None) -> None:
    """Check WIDTHxHEIGHT for the member `painter` of a pack, "transformer" or "flow"; None: for guidance.

    Warns of a size that the code transformer draws through a moving window, and of one that is larger than the flow's.

    Raises:
        UsageError: if pictures of this size cannot be drawn.
    """
    width, height = limited_size(size)
    factor = pack.config(VQGANConfig).factor
    if painter == "flow":
        flow = pack.config(FlowTransformerConfig)
        _check_multiples(size, factor * flow.patch)
        own_height, own_width = (side * factor for side in flow.grid)
        if width > own_width or height > own_height:
            own = f"{own_width}x{own_height}"
            warn(
                f"{size} is larger than the {own} that the flow was trained on: one thing is smeared over all of it. "
                f"For one large thing draw {own} and enlarge it with upscale"
            )
        return
    if painter is None:
        _check_multiples(size, factor)
        return
    config = pack.config(CodeTransformerConfig)
    _check_multiples(size, factor * config.block)
    own_height, own_width = (side * factor for side in config.grid)
    own = f"{own_width}x{own_height}"
    if width < own_width or height < own_height:
        raise UsageError(f"{size} is smaller than the pack's {own}: draw at that size, and reduce the picture")
    if (width, height) != (own_width, own_height):
        if config.masked:
            raise UsageError(f"this pack's masked code transformer draws {own} alone: leave out size")
        times = WINDOW_COST * width * height / (own_width * own_height)
        warn(
            f"{size} is drawn code by code through a window of {own}, which takes about {times:,.0f} times as long as "
            f"{own}, and goes on with what is in the window: for patterns and rows of things. For one large thing draw "
            f"{own} and enlarge it with upscale"
        )


def retouches(pack: Pack, size: str) -> bool:
    """Whether pictures of a size ("": the pack's own) can be retouched: by a code transformer that fills holes, at its
    own size."""
    if not pack.has("transformer"):
        return False
    config, factor = pack.config(CodeTransformerConfig), pack.config(VQGANConfig).factor
    own = config.grid[1] * factor, config.grid[0] * factor
    return (config.source_codes or config.masked) and (not size or parse_size(size) == own)


def limited_size(size: str) -> tuple[int, int]:
    """Width and height of a size. Raises UsageError if no computer could draw so many pixels."""
    width, height = parse_size(size)
    if width * height > MAX_PIXELS:
        raise UsageError(f"a picture of {size} pixels is too large: ask for less")
    return width, height


def _check_multiples(size: str, unit: int) -> None:
    if any(side % unit for side in parse_size(size)):
        raise UsageError(f"a picture of {size} has no whole codes: use multiples of {unit}")
