import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codebrush.errors import PackError
from codebrush.models.clip import CLIP, CLIPConfig
from codebrush.models.encoders.bag_of_words import BagOfWords, BagOfWordsConfig
from codebrush.models.encoders.image_encoder import make_image_encoder
from codebrush.models.encoders.pretrained_text import PretrainedText, PretrainedTextConfig
from codebrush.models.encoders.text_encoder import make_text_encoder
from codebrush.models.encoders.text_transformer import TextTransformer, TextTransformerConfig
from codebrush.models.encoders.vision_transformer import VisionTransformerConfig
from codebrush.models.layers.pooling import masked_mean

PAD, START, END, CONTEXT = 0, 28, 29, 12
KINDS = [(True, "argmax"), (True, "end"), (True, "mean"), (False, "argmax"), (False, "end"), (False, "mean")]


def tower(causal: bool = True, pooling: Any = "argmax", **changes: Any) -> TextTransformer:
    """A small encoder with weights so large that every part changes the output."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "embed_dim": 10}
    values = {**sizes, "pad_id": PAD, "end_id": END, **changes}
    config = TextTransformerConfig(30, CONTEXT, causal=causal, pooling=pooling, **values)
    model = TextTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def padded(*texts: list[int], length: int = CONTEXT) -> Tensor:
    """<start> words <end> of each text, then padding, (B, length)."""
    rows = [[START, *words, END] for words in texts]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def bag(**changes: Any) -> BagOfWords:
    values: dict[str, Any] = {"pad_id": PAD, "special_ids": (START, END), **changes}
    return BagOfWords(BagOfWordsConfig(30, CONTEXT, 8, 10, **values))


class TestTextTransformer:
    def test_a_causal_encoder_never_sees_later_tokens(self) -> None:
        model, tokens = tower(), padded([3, 4, 5, 6, 7])
        for position in range(1, 7):
            changed = tokens.clone()
            changed[0, position] = 17
            before, after = model.features(tokens), model.features(changed)
            assert torch.equal(before[:, :position], after[:, :position])
            assert not torch.allclose(before[:, position:], after[:, position:], atol=1e-3)

    def test_a_bidirectional_encoder_sees_both_ways_and_no_padding(self) -> None:
        model, tokens = tower(causal=False, pooling="mean"), padded([3, 4, 5])
        changed = padded([3, 4, 6])
        assert not torch.allclose(model.features(tokens)[:, 0], model.features(changed)[:, 0], atol=1e-3)
        features, output = model.features(tokens)[:, :5], model(tokens)
        with torch.no_grad():
            model.token_embedding.weight[PAD] += 9
        assert torch.equal(model.features(tokens)[:, :5], features)
        assert torch.equal(model(tokens), output)

    @pytest.mark.parametrize(("causal", "pooling"), KINDS)
    def test_padding_of_any_length_changes_nothing(self, causal: bool, pooling: str) -> None:
        model = tower(causal, pooling)
        texts = [[3, 4, 5], [9]]
        expected = torch.cat([model(padded(text, length=len(text) + 2)) for text in texts])
        for length in range(5, CONTEXT + 1):
            for text, row in zip(texts, expected, strict=True):
                assert torch.equal(model(padded(text, length=length))[0], row)
            torch.testing.assert_close(model(padded(*texts, length=length)), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("causal", "pooling"), KINDS)
    def test_trimming_equals_reading_the_whole_context(self, causal: bool, pooling: str) -> None:
        model, tokens = tower(causal, pooling), padded([3, 4, 5], [9], [])
        features = model.features(tokens)
        ends = tokens.eq(END).int().argmax(1)
        if pooling == "mean":
            rows = [row[: end + 1].mean(0) for row, end in zip(features, ends, strict=True)]
        else:
            rows = [row[end] for row, end in zip(features, ends, strict=True)]
        expected = torch.stack(rows) @ model.projection.weight.T
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)

    def test_poolings_read_the_largest_id_or_the_first_end(self) -> None:
        tokens = torch.tensor([[27, 3, 26, 4, 26, PAD]])
        largest, first = tower(pooling="argmax"), tower(pooling="end", end_id=26)
        for model, position in ((largest, 0), (first, 2)):
            expected = model.projection(model.features(tokens)[:, position])
            torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)

    def test_word_order_and_place_count(self) -> None:
        for causal in (True, False):
            model = tower(causal, "mean")
            assert not torch.allclose(model(padded([3, 4])), model(padded([4, 3])), atol=1e-3)

    @pytest.mark.parametrize("pooling", ["argmax", "mean"])
    def test_a_text_of_nothing_but_padding_is_finite_and_so_is_its_gradient(self, pooling: str) -> None:
        model = tower(False, pooling).train()
        tokens = torch.cat([padded([3, 4]), torch.full((1, CONTEXT), PAD)])
        output = model(tokens)
        assert output.isfinite().all()
        torch.testing.assert_close(output[:1], model(tokens[:1]), atol=1e-5, rtol=1e-5)
        output.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_narrow_token_vectors_are_widened(self) -> None:
        model, tokens = tower(token_width=6), padded([3, 4])
        assert model.token_embedding.weight.shape == (30, 6)
        assert model.features(tokens).shape == (1, CONTEXT, 16) == (1, CONTEXT, model.config.feature_width)
        assert model(tokens).shape == (1, 10)

    def test_more_tokens_than_the_context_holds_raise(self) -> None:
        with pytest.raises(RuntimeError, match=r"size of tensor a .* must match"):
            tower()(padded([3] * CONTEXT, length=CONTEXT + 2))


class TestBagOfWords:
    @settings(deadline=None, max_examples=25)
    @given(words=st.lists(st.integers(1, 27), min_size=1, max_size=8), data=st.data())
    def test_neither_order_nor_specials_nor_padding_count(self, words: list[int], data: st.DataObject) -> None:
        torch.manual_seed(0)
        model = bag()
        shuffled = data.draw(st.permutations(words))
        expected = model.projection(model.token_embedding.weight[words].mean(0))
        bare = torch.tensor([shuffled])
        for tokens in (bare, padded(words), padded(shuffled, length=10)):
            torch.testing.assert_close(model(tokens)[0], expected, atol=1e-5, rtol=1e-5)

    def test_a_text_without_words_is_the_bias(self) -> None:
        model = bag()
        tokens = torch.cat([padded([]), torch.full((1, CONTEXT), PAD)])
        output = model(tokens)
        torch.testing.assert_close(output, model.projection.bias.expand(2, -1))
        output.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_features_are_the_rows_of_the_table(self) -> None:
        model, tokens = bag(), padded([3, 4])
        assert torch.equal(model.features(tokens), model.token_embedding.weight[tokens])
        assert model.features(tokens).shape[2] == model.config.feature_width == 8

    def test_the_config_alone_says_which_ids_are_special(self) -> None:
        with_end = bag(special_ids=(START,))
        expected = with_end.projection(with_end.token_embedding.weight[[3, END]].mean(0))
        torch.testing.assert_close(with_end(padded([3]))[0], expected, atol=1e-5, rtol=1e-5)


def test_a_masked_mean_counts_what_the_mask_lets_through() -> None:
    features = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False] * 3])
    assert masked_mean(features, mask).tolist() == [[2, 3], [0, 0]]
    assert masked_mean(features.half(), mask).dtype == torch.float16


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny encoders of transformers by name, each with the folder that it saved itself into."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "initializer_range": 0.3,
    }
    configs = {
        "bert": transformers.BertConfig(**sizes, pad_token_id=0, max_position_embeddings=14),
        "roberta": transformers.RobertaConfig(**sizes, pad_token_id=1, max_position_embeddings=14),
    }
    made = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp(name)
        encoder = transformers.AutoModel.from_config(config).eval()
        encoder.save_pretrained(folder)
        made[name] = (encoder, folder, config.pad_token_id)
    return made


def texts_for(pad: int) -> Tensor:
    words = torch.randint(2, 30, (3, 9))
    words[1, 6:] = pad
    words[2, 2:] = pad
    return words


@pytest.mark.parametrize("name", ["bert", "roberta"])
class TestPretrainedText:
    def test_features_are_the_encoders_own_hidden_states(self, encoders: dict[str, Any], name: str) -> None:
        encoder, folder, pad = encoders[name]
        model, tokens = PretrainedText.from_huggingface(folder, 10), texts_for(pad)
        mask = tokens != pad
        with torch.no_grad():
            expected = encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            features, output = model.features(tokens), model(tokens)
        assert model.config.pad_id == pad
        assert model.config.feature_width == 16
        torch.testing.assert_close(features[mask], expected[mask], atol=1e-6, rtol=1e-6)
        means = torch.stack([row[real].mean(0) for row, real in zip(expected, mask, strict=True)])
        torch.testing.assert_close(output, means @ model.projection.weight.T, atol=1e-5, rtol=1e-5)

    def test_padding_of_any_length_changes_nothing(self, encoders: dict[str, Any], name: str) -> None:
        _, folder, pad = encoders[name]
        model, words = PretrainedText.from_huggingface(folder, 10), torch.randint(2, 30, (1, 4))
        with torch.no_grad():
            expected = model(words)
            for extra in range(1, 8):
                longer = torch.nn.functional.pad(words, (0, extra), value=pad)
                torch.testing.assert_close(model(longer), expected, atol=1e-5, rtol=1e-5)

    def test_the_whole_context_fits_its_positions(self, encoders: dict[str, Any], name: str) -> None:
        _, folder, _ = encoders[name]
        model = PretrainedText.from_huggingface(folder, 10)
        length = model.config.context_length
        # of RoBERTa's 14 positions the padding and what stands before it take two
        assert length == {"bert": 14, "roberta": 12}[name]
        assert model(torch.randint(2, 30, (2, length))).isfinite().all()
        assert PretrainedText.from_huggingface(folder, 10, context_length=7).config.context_length == 7

    def test_a_clip_around_it_comes_back_exactly(self, encoders: dict[str, Any], name: str, tmp_path: Path) -> None:
        _, folder, pad = encoders[name]
        text = PretrainedText.from_huggingface(folder, 10)
        image = VisionTransformerConfig(16, 8, 8, 1, 1, 10)
        clip = CLIP(CLIPConfig(image, text.config), make_image_encoder(image), text).eval()
        clip.save_pretrained(tmp_path / "clip")
        loaded = CLIP.from_pretrained(tmp_path / "clip")
        tokens = texts_for(pad)
        assert loaded.config == clip.config
        with torch.no_grad():
            assert torch.equal(loaded.encode_text(tokens), clip.encode_text(tokens))
        assert str(folder) not in (tmp_path / "clip" / "config.json").read_text()


class TestAFolderOfTransformers:
    def test_pooling_by_the_first_token(self, encoders: dict[str, Any]) -> None:
        encoder, _, _ = encoders["bert"]
        config = PretrainedTextConfig(json.dumps(encoder.config.to_dict()), 9, 10, pooling="first")
        model, tokens = make_text_encoder(config).eval(), texts_for(0)
        torch.testing.assert_close(model(tokens), model.projection(model.features(tokens)[:, 0]))

    def test_half_precision_weights_become_float32(self, encoders: dict[str, Any], tmp_path: Path) -> None:
        _, folder, _ = encoders["bert"]
        whole = PretrainedText.from_huggingface(folder, 10)
        type(whole.encoder)(whole.encoder.config).half().save_pretrained(tmp_path)
        model = PretrainedText.from_huggingface(tmp_path, 10)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model(texts_for(0)).isfinite().all()

    def test_what_cannot_be_read_is_one_line_that_names_the_folder(
        self, encoders: dict[str, Any], tmp_path: Path
    ) -> None:
        _, folder, _ = encoders["bert"]
        weights = (folder / "model.safetensors").read_bytes()
        damaged = {"empty": None, "truncated": weights[:700], "blank": b""}
        for name, content in damaged.items():
            place = tmp_path / name
            place.mkdir()
            if content is not None:
                (place / "config.json").write_bytes((folder / "config.json").read_bytes())
                (place / "model.safetensors").write_bytes(content)
            with pytest.raises(PackError, match=f"{name} holds no Hugging Face text encoder") as caught:
                PretrainedText.from_huggingface(place, 10)
            assert "\n" not in str(caught.value)

    def test_an_unknown_architecture_in_a_saved_clip_is_a_pack_error(
        self, encoders: dict[str, Any], tmp_path: Path
    ) -> None:
        _, folder, _ = encoders["bert"]
        text = PretrainedText.from_huggingface(folder, 10)
        image = VisionTransformerConfig(16, 8, 8, 1, 1, 10)
        CLIP(CLIPConfig(image, text.config), make_image_encoder(image), text).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        for architecture in ('{"model_type": "none such"}', "{}", "{"):
            config["text"]["architecture"] = architecture
            path.write_text(json.dumps(config))
            with pytest.raises(PackError, match=r"config\.json describes no network"):
                CLIP.from_pretrained(tmp_path)
