"""CLIP's text encoders: `TextTransformer`, `BagOfWords` and `PretrainedText`, made by the class of their config.

Each turns tokens (B, T) int64 into one vector a text (B, E), and with `features` into one a token (B, T, D).
Their configs all have `context_length`, `pad_id`, `embed_dim` and `feature_width` (D).
"""

from codebrush.models.encoders.bag_of_words import BagOfWords, BagOfWordsConfig
from codebrush.models.encoders.pretrained_text import PretrainedText, PretrainedTextConfig
from codebrush.models.encoders.text_transformer import TextTransformer, TextTransformerConfig

TextEncoderConfig = TextTransformerConfig | BagOfWordsConfig | PretrainedTextConfig


def make_text_encoder(config: TextEncoderConfig) -> TextTransformer | BagOfWords | PretrainedText:
    """A freshly initialised text encoder of the kind and sizes of `config`."""
    if isinstance(config, TextTransformerConfig):
        return TextTransformer(config)
    if isinstance(config, BagOfWordsConfig):
        return BagOfWords(config)
    return PretrainedText(config)
