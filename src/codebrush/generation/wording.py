"""Words a prompt as a pack reads it: in one of its styles, and with what the picture must not show."""

from collections.abc import Sequence

from codebrush.errors import PackError, UsageError
from codebrush.pack.pack import Pack
from codebrush.text.prompt_writing import with_negative, with_style
from codebrush.text.reading import read_prompt


def worded(pack: Pack, prompt: str, style: str | None = None, negative_prompt: str | None = None) -> str:
    """A prompt as it is drawn (see `read_prompt`): in a `style` of the pack, and away from `negative_prompt`.

    Raises:
        PromptError: if it is no prompt.
        PackError: if a style is given and the pack was trained with none.
        UsageError: if the pack does not know the style.
    """
    text = None if style is None else style_text(pack, style)
    prompt = read_prompt(prompt, pack.tokenizer)
    if text is not None:
        prompt = with_style(prompt, text)
    if negative_prompt is not None and negative_prompt.strip():
        prompt = with_negative(prompt, read_prompt(negative_prompt, pack.tokenizer))
    return prompt


def style_text(pack: Pack, style: str) -> str:
    """How a pack says a style in words, with {prompt} in the prompt's place.

    Raises:
        PackError: if the pack was trained with no styles.
        UsageError: if it does not know this one.
    """
    text, styles = pack.styles
    if not styles:
        raise PackError(f"the pack '{pack.name}' was trained with no styles: say the style in the prompt")
    check_style(style, styles)
    return text.replace("{style}", style)


def check_style(style: str, styles: Sequence[str]) -> None:
    """Raises UsageError if `style` is not one of the pack's `styles`."""
    if style not in styles:
        raise UsageError(f"the pack has no style '{style}': it has {', '.join(styles)}")
