"""VQGAN-CLIP: CLIP's gradient changes a latent until its picture fits the prompt."""
