"""How the sampler decodes what was drawn."""

import pytest
import torch

from codebrush.generation.sampling.sampler import DECODED, decoded_together
from codebrush.models.vqgan import VQGAN
from codebrush.models.vqgan_sizes import vqgan_micro


@pytest.mark.parametrize("count", range(1, 14))
def test_parts_decode_to_what_all_decode_to_at_once(count: int) -> None:
    torch.manual_seed(count)
    vqgan = VQGAN(vqgan_micro()).eval().requires_grad_(False)
    latent = vqgan.quantizer.look_up(torch.randint(0, vqgan.codebook_size, (count, 8, 8)))
    parts = decoded_together(latent)
    assert max(map(len, parts)) <= DECODED + count % 2
    assert count == 1 or min(map(len, parts)) > 1  # one alone is rounded otherwise
    found = torch.cat([vqgan.decode(part) for part in parts])
    torch.testing.assert_close(found, vqgan.decode(latent), atol=1e-5, rtol=0)
