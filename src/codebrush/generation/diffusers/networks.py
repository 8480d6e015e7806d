"""Our networks as models of diffusers, which then loads, saves and moves them like its own."""

from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.condition import Condition
from codebrush.models.flow_transformer import FlowTransformer, FlowTransformerConfig
from codebrush.models.pretrained import config_from_dict
from codebrush.pack.pack import text_condition
from codebrush.text.tokenizer import Tokenizer

__all__ = ["CLIPEncoder", "FlowNetwork", "ModelMixin"]  # by ModelMixin diffusers knows how the others are loaded


class FlowNetwork(ModelMixin, ConfigMixin):
    """A flow transformer; `settings` is its config as `config_to_dict` writes it."""

    @register_to_config
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.network = FlowTransformer(config_from_dict(FlowTransformerConfig, dict(settings)))

    def forward(self, x: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """The velocity (B, d, h, w) of `x` at `time` (B,); see `FlowTransformer.forward`."""
        return self.network(x, time, condition)


class CLIPEncoder(ModelMixin, ConfigMixin):
    """A CLIP, with its tokenizer beside its weights; `settings` is its config as `config_to_dict` writes it."""

    tokenizer: Tokenizer

    @register_to_config
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.network = CLIP.from_config(config_from_dict(CLIPConfig, dict(settings)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> "CLIPEncoder":
        """As in diffusers, from a folder with a tokenizer in it."""
        model = super().from_pretrained(pretrained_model_name_or_path, **options)
        model.tokenizer = Tokenizer.from_pretrained(pretrained_model_name_or_path)
        return model

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in diffusers, with the tokenizer."""
        super().save_pretrained(save_directory, **options)
        self.tokenizer.save(Path(save_directory))

    @torch.no_grad()
    def condition(self, texts: list[str], config: FlowTransformerConfig) -> Condition:
        """What a flow of this config reads of `texts`, one row each."""
        return text_condition(self.network, self.tokenizer(texts).to(self.device), config)
