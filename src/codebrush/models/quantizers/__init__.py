"""How a VQGAN's latent becomes codes of its codebook."""
