"""Shows pictures while they are drawn, code after code or by a flow."""

from collections.abc import Callable, Sequence
from threading import Lock

import torch
from PIL import Image
from torch import Tensor

from codebrush.data.decoding.images import to_pil
from codebrush.models.vqgan import VQGAN
from codebrush.progress import Preview

UNDRAWN = -1  # in place of a code that is not drawn yet
Look = Callable[[int, int, Tensor], None]  # number of codes drawn; the first of these candidates, their codes (B, h, w)


class HalfDrawn:
    """Shows the first pictures of prompts while they are drawn, those of one prompt maybe in several batches.

    Args:
        codes: for each prompt those of the pictures to show, (n, h, w) int64, UNDRAWN where they are to be drawn.
        finish: what is done to a picture of a prompt before it is shown.
    """

    def __init__(
        self,
        vqgan: VQGAN,
        codes: Sequence[Tensor],
        preview: Preview,
        finish: Callable[[Image.Image], Image.Image] = lambda picture: picture,
    ):
        self.vqgan, self.codes, self.preview, self.finish = vqgan, list(codes), preview, finish
        self.done = [0] * len(self.codes)  # at the last look at each prompt
        self.lock = Lock()

    def of(self, number: int) -> Look:
        """What takes the codes that are drawn of prompt `number`, and shows its pictures when it is time."""

        def look(done: int, first: int, codes: Tensor) -> None:
            with self.lock:
                own = self.codes[number][first : first + len(codes)]
                new = codes[: len(own)]
                own.copy_(torch.where(new == UNDRAWN, own, new))  # what is kept of an edit stays
                due = first == 0 and self.preview.due(self.done[number], done, codes[0].numel())
                if first == 0:
                    self.done[number] = done
                shown = self.codes[number].clone() if due else None
            if shown is not None:
                self.preview.show(number, [self.finish(picture) for picture in half_drawn(self.vqgan, shown)])

        return look


def undrawn(pictures: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Codes (pictures, h, w) of which none is drawn."""
    return torch.full((pictures, *grid), UNDRAWN, device=device)


def half_drawn(vqgan: VQGAN, codes: Tensor) -> list[Image.Image]:
    """Pictures of codes (B, h, w) of which some are UNDRAWN: there they have the mean of what is drawn, if anything."""
    drawn = (codes != UNDRAWN).unsqueeze(1)  # (B, 1, h, w)
    latent = vqgan.quantizer.look_up(codes.clamp(min=0))  # (B, d, h, w)
    mean = (latent * drawn).sum((2, 3), keepdim=True) / drawn.sum((2, 3), keepdim=True).clamp(min=1)
    with torch.inference_mode():
        return [to_pil(image) for image in vqgan.decode(torch.where(drawn, latent, mean))]
