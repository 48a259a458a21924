import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segline.labels import IGNORE_INDEX, Labels


def test_encode_exclusive_equals_a_loop_over_pixels() -> None:
    labels = Labels({"soil": 0, "weed": "#ff0000", "crop": ["#00ff00", 7]}, ignore=[9])
    raw = np.random.default_rng(0).choice([0, 0xFF0000, 0x00FF00, 7, 9], (5, 6, 7))
    meaning = {0: 0, 0xFF0000: 1, 0x00FF00: 2, 7: 2, 9: IGNORE_INDEX}
    expected = [meaning[v] for v in raw.ravel().tolist()]
    assert labels.encode(raw).ravel().tolist() == expected


def test_encode_overlapping_lets_classes_share_values() -> None:
    labels = Labels({"hippocampus": [1, 2], "anterior": [1]}, scheme="overlapping", ignore=[9])
    assert labels.encode(np.array([0, 1, 2, 9])).tolist() == [[0, 1, 1, 255], [0, 1, 0, 255]]


def test_a_value_outside_the_classes_is_named_with_its_count() -> None:
    with pytest.raises(ValueError, match=r"7 \(2 pixels\).*data\.labels\.classes"):
        Labels({"a": 0, "b": 1}).encode(np.array([0, 1, 7, 7]))
    with pytest.raises(ValueError, match=r"#0000ff \(1 pixels\)"):
        Labels({"a": "#000000", "b": "#ff0000"}).encode(np.array([0, 0x0000FF]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": {"a": 0}}, "overlapping"),
        ({"classes": {"a": 0, "b": 0}}, "0 belongs to"),
        ({"classes": {"a": 0, "b": 1}, "ignore": 1}, "1 belongs to"),
        ({"classes": {"a": 0, "b": 1}, "background": "c"}, "background"),
        ({"classes": {"a": 0, "b": 1}, "scheme": "multiclass"}, "exclusive, overlapping"),
        ({"classes": {"a": 0, "b": 1}, "colors": {"c": "#000000"}}, "colors"),
        ({"classes": {"a": 0, "b": "red"}}, "'red'"),
        ({"classes": {"a": 1}, "scheme": "overlapping", "rest": [1]}, "1 belongs to"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labels(**arguments)


@given(st.sampled_from(["exclusive", "overlapping"]), st.integers(1, 3), st.integers(2, 4), st.integers(0, 99))
def test_numpy_and_torch_give_the_same_probabilities_and_decision(
    scheme: str, batch: int, classes: int, seed: int
) -> None:
    labels = Labels({f"c{k}": k + 1 for k in range(classes)}, scheme=scheme)
    logits = np.random.default_rng(seed).normal(scale=20, size=(batch, classes, 3, 4)).astype(np.float32)
    probs = labels.probs(logits)
    np.testing.assert_allclose(probs, labels.probs(torch.from_numpy(logits)).numpy(), atol=1e-6)
    assert np.array_equal(labels.decide(probs), labels.decide(torch.from_numpy(probs)).numpy())
    if scheme == "exclusive":
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)


@given(st.integers(2, 6), st.integers(1, 3), st.sampled_from(["plain", "channels last", "strided"]), st.integers(0, 99))
def test_the_decision_is_the_first_of_the_highest_however_they_lie_in_memory(
    classes: int, axes: int, layout: str, seed: int
) -> None:
    labels = Labels({f"c{k}": k for k in range(classes)})
    values = np.array([0, 0.25, 0.5], np.float32)  # so few that there are ties
    few = np.random.default_rng(seed).choice(values, (2, classes, *[6] * axes))
    if layout == "channels last":
        few = np.moveaxis(np.moveaxis(few, 1, -1).copy(), -1, 1)
    elif layout == "strided":
        few = few[..., ::-2]
    assert few.flags.c_contiguous is (layout == "plain")
    assert np.array_equal(labels.decide(few), np.argmax(few, axis=1))


def test_a_class_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the class 'b' of data\.labels\.classes has no value"):
        Labels({"a": 0, "b": []})


def test_a_card_brings_back_equal_labels() -> None:
    labels = Labels({"a": "#102030", "b": ["#ffffff", 3]}, background="a", ignore=[9], colors={"b": "#00ff00"})
    again = Labels(**labels.to_dict())
    assert again == labels
    assert again.palette.tolist() == [[0x10, 0x20, 0x30], [0, 255, 0]]


def test_colours_of_many_classes_differ() -> None:
    palette = Labels({f"c{k}": k for k in range(60)}).palette
    assert len({tuple(color) for color in palette.tolist()}) == 60


def test_colors_of_two_dozen_classes_are_far_apart() -> None:
    palette = Labels({f"c{k}": k for k in range(24)}).palette
    lab = cv2.cvtColor(palette[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(24, 1)]
    assert distances.min() > 20  # 2.3 are just noticeable
