"""Named sizes of VQGANs: ours for tests, CPUs and GPUs, and the published ones."""

from codebrush.models.vqgan import VQGANConfig


def vqgan_micro() -> VQGANConfig:
    """A VQGAN for tests: 32 pixels, factor 4, some 40 thousand parameters."""
    return VQGANConfig(
        image_size=32,
        channels=16,
        channel_multipliers=(1, 1, 2),
        norm_groups=8,
        latent_channels=16,
        codebook_size=128,
    )


def vqgan_small(image_size: int = 64, codebook_size: int = 1024) -> VQGANConfig:
    """A VQGAN small enough to train on a CPU: factor 8, no attention."""
    return VQGANConfig(
        image_size=image_size,
        channels=32,
        channel_multipliers=(1, 2, 2, 4),
        norm_groups=8,
        latent_channels=64,
        codebook_size=codebook_size,
    )


def vqgan_base(image_size: int = 128, codebook_size: int = 4096) -> VQGANConfig:
    """A VQGAN to train on a GPU: factor 8, attention on the code grid."""
    return VQGANConfig(
        image_size=image_size,
        channels=64,
        channel_multipliers=(1, 2, 4, 4),
        res_blocks=2,
        attention_resolutions=(image_size // 8,),
        middle_attention=True,
        latent_channels=128,
        codebook_size=codebook_size,
    )


def vqgan_taming_f16(codebook_size: int = 16384) -> VQGANConfig:
    """taming-transformers' ImageNet f16 models, with 16,384 or 1,024 codes."""
    return VQGANConfig(
        image_size=256,
        channels=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        res_blocks=2,
        attention_resolutions=(16,),
        middle_attention=True,
        latent_channels=256,
        code_dim=256,
        codebook_size=codebook_size,
        l2_normalized=False,
    )


def vqgan_taming_gumbel_f8() -> VQGANConfig:
    """taming-transformers' OpenImages f8 model with 8,192 codes."""
    return VQGANConfig(
        image_size=256,
        channels=128,
        channel_multipliers=(1, 1, 2, 4),
        res_blocks=2,
        attention_resolutions=(32,),
        middle_attention=True,
        latent_channels=256,
        code_dim=256,
        codebook_size=8192,
        quantizer="gumbel",
        l2_normalized=False,
        kl_weight=1e-8,
    )
