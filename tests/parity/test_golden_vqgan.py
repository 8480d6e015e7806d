"""VQGANs in every published layout, against what the original code computes. Theirs work in [-1, 1], ours in [0, 1]."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codebrush.conversion.load import load_vqgan
from codebrush.models.vqgan import VQGAN
from golden_files import both_batches, check_acts, close, golden, recorded

MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
NAMES = ["taming_vq_a", "taming_gumbel_a", "llamagen_vq_a"]


def our_name(name: str, levels: int) -> str:
    name = re.sub(r"mid\.(\d)", lambda match: f"mid.{MIDDLE[match[1]]}", name)
    name = re.sub(r"encoder\.conv_blocks", "encoder.down", name)
    name = re.sub(r"decoder\.conv_blocks\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", name)
    return name.replace(".res.", ".block.")


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_codes_and_pictures(name: str, configured: bool) -> None:
    reference = golden(name)
    vqgan = load_vqgan(reference.weights, reference.config if configured else None)
    io = reference.io
    images = (io["input.image"] + 1) / 2
    names = {act: our_name(act, len(vqgan.config.channel_multipliers)) for act in reference.acts()}

    def run(rows: slice) -> None:
        with recorded(vqgan, names) as found:
            latent = vqgan.encode(images[rows])
            quantised, codes = vqgan.quantize(latent)
            decoded = vqgan.decode(quantised)
        # Our final norm and its activation are one module.
        acts = {act: F.silu(value) if act.endswith("norm_out") else value for act, value in reference.acts().items()}
        check_acts(found, acts)
        close(latent, io["output.prequant"][rows], "latent")
        close(quantised, io["output.quant"][rows], "quantised latent")
        assert torch.equal(codes, io["output.indices"][rows])
        close(decoded * 2 - 1, io["output.reconstruction"][rows], "reconstruction")
        close(vqgan.post_quant_conv(quantised), io["output.post_quant"][rows], "post_quant")
        given = io["input.codes"][rows]
        close(vqgan.quantizer.look_up(given), io["output.codes_quant"][rows], "codes' vectors")
        close(vqgan.decode_codes(given) * 2 - 1, io["output.codes_decoded"][rows], "codes' picture")

    both_batches(run)


def test_the_codebook_loss_is_the_originals() -> None:
    reference = golden("taming_vq_a")
    vqgan = load_vqgan(reference.weights, reference.config)
    assert vqgan.config.commitment == 0.25
    with torch.no_grad():
        close(vqgan((reference.io["input.image"] + 1) / 2).codebook_loss, reference.io["output.codebook_loss"], "loss")


def test_the_gumbel_quantisers_logits_noise_and_divergence_are_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = golden("taming_gumbel_a")
    vqgan, io = load_vqgan(reference.weights, reference.config), reference.io
    latent = io["output.prequant"]
    with torch.no_grad():
        close(vqgan.quantizer.proj(latent), io["output.logits"], "logits")
        vqgan.train()
        _, _, loss, _ = vqgan.quantizer(latent)
        assert vqgan.config.kl_weight == reference.config["params"]["kl_weight"]
        close(loss / vqgan.config.kl_weight, io["output.kl"], "divergence")
        # The quantiser draws -log E of exponential E: let it draw the E of the stored noise.
        noise = (-io["input.gumbel_noise"]).exp()
        monkeypatch.setattr(Tensor, "exponential_", lambda self: self.copy_(noise))
        quantised, codes = vqgan.quantize(latent)
    assert torch.equal(codes, io["output.noisy_indices"])
    close(quantised, io["output.noisy_quant"], "noisy latent")


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_vqgan_is_ready_to_use_and_comes_back_from_our_folder(name: str, tmp_path) -> None:
    reference = golden(name)
    vqgan = load_vqgan(reference.weights, reference.config)
    vqgan.save_pretrained(tmp_path)
    again = VQGAN.from_pretrained(tmp_path)
    assert not vqgan.training
    assert again.config == vqgan.config
    with torch.no_grad():
        given = reference.io["input.codes"]
        assert torch.equal(again.decode_codes(given), vqgan.decode_codes(given))
    if vqgan.config.quantizer == "vector":
        assert bool(vqgan.quantizer.initialised)  # pyright: ignore[reportArgumentType]
