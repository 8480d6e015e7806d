"""The linear probe compared with scikit-learn, and its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from codebrush.errors import CodebrushError, DataError, PackError
from codebrush.understanding.probe import KIND, LinearProbe, fit_probe, probe_figures

linear_model = pytest.importorskip("sklearn.linear_model")


def clusters(count: int, names: str = "abc", spread: float = 0.5, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Unit vectors around one centre a label."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(len(names), 8, generator=torch.Generator().manual_seed(9)), dim=-1)
    kinds = torch.arange(count) % len(names)
    points = centres[kinds] + spread * torch.randn(count, 8, generator=generator)
    return F.normalize(points, dim=-1), [names[kind] for kind in kinds]


def test_a_probe_gives_the_probabilities_of_logistic_regression_on_both_splits() -> None:
    train, val, (points, _) = clusters(60), clusters(30, seed=1), clusters(20, seed=2)
    probe = fit_probe(*train, val)
    both, names = torch.cat([train[0], val[0]]).double().numpy(), np.array(train[1] + val[1])
    model = linear_model.LogisticRegression(C=probe.strength, max_iter=1000).fit(both, names)
    wanted = model.predict_proba(points.double().numpy())
    found = (probe.temperature * probe.logits(points)).softmax(-1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert probe.labels == ("a", "b", "c")


def test_the_strength_is_the_best_on_val() -> None:
    train, val = clusters(60), clusters(30, seed=1)
    probe = fit_probe(*train, val)
    for strength, score in probe.scores.items():
        model = linear_model.LogisticRegression(C=strength, max_iter=1000).fit(train[0].double().numpy(), train[1])
        assert score == pytest.approx(model.score(val[0].double().numpy(), val[1]))
    best = max(probe.scores.values())
    assert probe.strength == min(strength for strength, score in probe.scores.items() if score == best)


def test_without_val_a_fifth_of_each_label_is_held_out() -> None:
    points, names = clusters(50, names="ab")
    probe = fit_probe(points, names)
    assert {round(score * 10) / 10 for score in probe.scores.values()} == set(probe.scores.values())  # of ten pictures


def test_two_labels_are_as_likely_as_scikit_learn_has_them() -> None:
    points, names = clusters(40, names="ab")
    probe = fit_probe(points, names)
    model = linear_model.LogisticRegression(C=probe.strength, max_iter=1000).fit(points.double().numpy(), names)
    np.testing.assert_allclose(
        (probe.temperature * probe.logits(points)).softmax(-1),
        model.predict_proba(points.double().numpy()),
        atol=1e-5,
    )
    assert probe.rank(points[:1])[0][0][1] >= 0.5


def test_figures_are_counts() -> None:
    probe = LinearProbe(("a", "b", "c"), torch.eye(3), torch.zeros(3), 1.0)
    points = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    found = probe_figures(probe, points, ["a", "a", "a", "b", "z"])
    assert found == {"top1": 2 / 5, "top5": 4 / 5, "mean_per_class": (2 / 3) / 3, "pictures": 5, "unseen": 1}


def test_one_label_is_refused() -> None:
    with pytest.raises(DataError, match="two labels or more"):
        fit_probe(torch.eye(4), ["a"] * 4)


def test_labels_with_one_picture_each_are_learned_without_a_choice() -> None:
    probe = fit_probe(torch.eye(3), ["a", "b", "c"])
    assert (probe.strength, dict(probe.scores), probe.temperature) == (1.0, {}, 1.0)
    assert not probe.at_edge


def test_a_saved_probe_comes_back(tmp_path: Path) -> None:
    probe = replace(fit_probe(*clusters(30)), clip="abc")
    probe.save(tmp_path / "folder" / "probe.safetensors")
    back = LinearProbe.load(tmp_path / "folder" / "probe.safetensors")
    torch.testing.assert_close(back.weight, probe.weight)
    torch.testing.assert_close(back.bias, probe.bias)
    assert (back.labels, back.strength, back.scores, back.clip) == (probe.labels, probe.strength, probe.scores, "abc")
    assert back.temperature == probe.temperature != 1
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["probe.safetensors"]


def test_a_probe_from_before_temperatures_loads(tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    about = {"kind": KIND, "labels": ["a", "b"], "strength": 1.0, "clip": "abc", "scores": [[1.0, 0.5]]}
    for more, temperature in (({}, 1.0), ({"temperature": 2.0}, 2.0), ({"temperature": 0}, None)):
        save_file({"weight": torch.eye(2), "bias": torch.zeros(2)}, path, metadata={"probe": json.dumps(about | more)})
        if temperature is None:
            with pytest.raises(PackError, match="not a probe, or damaged"):
                LinearProbe.load(path)
        else:
            assert LinearProbe.load(path).temperature == temperature


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_probabilities_are_truer_at_the_temperature(names: str) -> None:
    train, val, (points, labels) = (clusters(count, names, 0.3, seed) for seed, count in enumerate((200, 100, 1000)))
    probe = fit_probe(*train, val)
    targets = torch.tensor([names.index(label) for label in labels])

    def loss(logits: Tensor) -> float:
        return F.cross_entropy(logits, targets).item()

    assert loss(probe.logits(points)) < 0.8 * loss(probe.temperature * probe.logits(points))


def test_few_correct_pictures_do_not_give_certainty() -> None:
    points, names = clusters(20, "ab", spread=0.01)
    probe = fit_probe(points, names, clusters(4, "ab", spread=0.01))
    assert probe.scores[probe.strength] == 1
    assert probe.logits(points).softmax(-1).amax() < 0.99


def test_labels_of_val_alone_do_not_count_for_the_temperature() -> None:
    train, (points, names) = clusters(60), clusters(30, seed=1)
    strange = fit_probe(*train, (torch.cat([points, points[:1]]), [*names, "z"]))
    assert strange.temperature == pytest.approx(fit_probe(*train, (points, names)).temperature)
    assert strange.labels == ("a", "b", "c", "z")


def test_a_strength_at_the_edge_says_so() -> None:
    probe = LinearProbe(("a", "b"), torch.eye(2), torch.zeros(2), 1.0, {0.1: 0.5, 1.0: 0.6, 10.0: 0.5})
    assert [replace(probe, strength=strength).at_edge for strength in probe.scores] == [True, False, True]


def test_a_file_that_is_not_a_probe_is_refused(tmp_path: Path, micro_pack: Path) -> None:
    with pytest.raises(PackError, match="no such file"):
        LinearProbe.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    for path in (tmp_path / "cut.safetensors", micro_pack / "clip" / "model.safetensors"):
        with pytest.raises(PackError, match="not a probe, or damaged"):
            LinearProbe.load(path)


def test_a_probe_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CodebrushError, match="cannot write"):
        fit_probe(*clusters(30)).save(tmp_path / "file" / "probe.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
