"""Whether a picture shows what a text says, by texts about other things."""

import pytest
import torch

from codebrush.understanding.presence import Presence, presences


def test_the_level_is_the_share_of_other_texts_that_fit_less() -> None:
    picture = torch.tensor([1.0, 0.0])
    others = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])  # cosines 0, 0.6, 0.8, -1
    texts = torch.tensor([[0.96, 0.28], [0.28, 0.96], [0.8, -0.6]])  # 0.96, 0.28, 0.8: equal is not less
    assert [each.level for each in presences(picture, texts, others)] == [1.0, 0.5, 0.75]


@pytest.mark.parametrize(
    ("level", "opening"),
    [(0.95, None), (0.94, "perhaps the picture does not show"), (0.8, "perhaps"), (0.79, "the picture hardly shows")],
)
def test_a_doubt_names_the_text_and_the_share(level: float, opening: str | None) -> None:
    doubt = Presence(level).doubt("a zebra")
    assert Presence(level).shown == (opening is None)
    if opening is None:
        assert doubt is None
    else:
        assert doubt is not None
        assert doubt.startswith(opening)
        assert f'"a zebra": {1 - level:.0%} of texts about other things' in doubt
