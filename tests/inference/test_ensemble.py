from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Array, make_card
from torch.nn import functional

from segline.inference.ensemble import Ensemble, Member, View, resize, views_of
from segline.labels import Labels

RNG = np.random.default_rng(0)


def member(bias: float = 0.0, **fields: object) -> Member:
    """Says of each pixel three probabilities that depend on it alone."""
    card = make_card(1, **fields)

    def network(images: np.ndarray) -> np.ndarray:
        logits = np.concatenate([images, -images + bias, np.sin(images)], 1)
        return Labels(**card.labels).probs(logits)

    return Member(card, network, 4)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_view_is_another_one_and_is_brought_back(dims: int) -> None:
    images = RNG.normal(size=(1, 1, *[4, 5, 6][:dims])).astype(np.float32)
    counts = {(): 1, ("flips",): 2**dims, ("turns",): 4, ("flips", "turns"): 8 * 2 ** (dims - 2)}
    for names, count in counts.items():
        seen = set()
        for view in views_of(names, dims):
            turned = view.see(images)
            seen.add((turned.shape, turned.tobytes()))
            np.testing.assert_array_equal(view.back(turned, images.shape[2:]), images)
        assert len(seen) == count


def test_views_are_averaged_where_they_lie() -> None:
    """A network that says where the largest pixel is to the left: brought back wrongly, the mean would be another."""

    def shift(images: np.ndarray) -> np.ndarray:
        moved = np.roll(images, 1, -1)
        return np.concatenate([moved, -moved, images], 1)

    images = RNG.normal(size=(2, 1, 6, 6)).astype(np.float32)
    ensemble = Ensemble([Member(make_card(1), shift)], views_of(["flips", "turns"], 2))
    expected = np.zeros((2, 3, 6, 6), np.float32)
    for turns, flipped in product(range(4), (False, True)):
        seen = np.rot90(images, turns, (2, 3))
        said = shift(seen[..., ::-1])[..., ::-1] if flipped else shift(seen)
        expected += np.rot90(said, -turns, (2, 3)) / 8
    np.testing.assert_allclose(ensemble(images), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "new"), [((5, 8), (10, 6)), ((7, 7), (1, 20)), ((4, 6, 5), (8, 3, 5)), ((1, 3), (4, 3))]
)
def test_resizing_is_that_of_torch(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    values = RNG.normal(size=(2, 3, *shape)).astype(np.float32)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    expected = functional.interpolate(torch.from_numpy(values), new, mode=mode, align_corners=False).numpy()
    np.testing.assert_allclose(resize(values, new), expected, atol=1e-5)


def test_a_scale_changes_what_the_network_sees_and_not_the_size_of_what_it_says() -> None:
    seen = []

    def network(images: np.ndarray) -> np.ndarray:
        seen.append(images.shape[2:])
        return np.repeat(images, 3, 1)

    ramp = np.broadcast_to(np.linspace(0, 1, 12, dtype=np.float32), (1, 1, 8, 12))
    mean = Ensemble([Member(make_card(1), network)], views_of([0.5, 1.5], 2))(ramp)
    assert seen == [(8, 12), (4, 6), (12, 18)]
    np.testing.assert_allclose(mean[..., 2:-2], np.repeat(ramp, 3, 1)[..., 2:-2], atol=0.02)


def test_a_view_that_is_named_twice_is_made_once() -> None:
    assert views_of([0.75, 1, 0.75, 1.5, "flips", "flips"], 2) == views_of(["flips", 0.75, 1.5], 2)
    assert len(views_of([0.75, 0.75], 2)) == 2


@pytest.mark.parametrize("tta", [["flip"], [0.01], [100]])
def test_views_that_do_not_exist_are_refused(tta: list[str | float]) -> None:
    with pytest.raises(ValueError, match=r"expected some of flips, turns, and scales such as 0\.75"):
        views_of(tta, 2)


def test_members_are_averaged_each_with_its_own_normalisation(tmp_path: Path) -> None:
    own = {"normalize": {"scope": "dataset", "mean": [10.0], "std": [2.0]}}
    members = [member(0.3), member(-2.0, **own), member(1.0, **own), member(0.1, normalize={"scope": "case"})]
    image = RNG.normal(20, 3, (1, 9, 7)).astype(np.float32)
    ensemble = Ensemble(members)
    said = ensemble(ensemble.prepare(Array(image))(image)[None])
    normal = [(100.0, 50.0), (10.0, 2.0), (10.0, 2.0), (image.mean(), image.std())]
    alone = [m.network(((image - mean) / std)[None]) for m, (mean, std) in zip(members, normal, strict=True)]
    np.testing.assert_allclose(said, np.mean(alone, 0), atol=1e-5)
    assert ensemble.num_bands == 3  # of the equal two only once


@pytest.mark.parametrize("field", [{"bands": [1]}, {"labels": {"classes": {"x": 0, "y": 1, "z": 2}}}])
def test_checkpoints_of_other_bands_or_labels_are_not_averaged(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"differ in {next(iter(field))}: .*expected some that can be averaged"):
        Ensemble([member(), member(**field)])


def test_checkpoints_of_another_order_of_classes_are_not_averaged() -> None:
    turned = {"labels": {"classes": {f"class_{k}": k for k in (2, 1, 0)}}}
    with pytest.raises(ValueError, match="differ in the order of classes"):
        Ensemble([member(), member(**turned)])


def test_the_spread_is_the_entropy_that_single_predictions_have_on_average() -> None:
    members, images = [member(0.3), member(-2.0)], RNG.normal(size=(2, 1, 5, 4)).astype(np.float32)
    said = Ensemble(members, spread=True)(images)
    single = []
    for one in members:
        probs = one.network(images)
        single.append(-(probs * np.log(probs)).sum(1) / np.log(3))
    np.testing.assert_allclose(said[:, 3], np.mean(single, 0), atol=1e-5)
    # Jensen's inequality: what they disagree in is never negative.
    assert (Labels(**members[0].card.labels).entropy(said[:, :3]) - said[:, 3]).min() >= -1e-6


def test_entropy_of_overlapping_classes_is_that_of_each_yes_or_no() -> None:
    labels = Labels({"a": [1], "b": [1, 2]}, scheme="overlapping")
    probs = np.array([[0.5, 0.5], [0.0, 1.0], [0.5, 1.0]], np.float32)
    np.testing.assert_allclose(labels.entropy(probs), [1, 0, 0.5], atol=1e-6)


def test_strides_of_members_have_to_fit_all() -> None:
    one = member()
    assert Ensemble([one, Member(one.card, one.network, 6)]).stride == 12
    assert Ensemble([one, Member(one.card, one.network)]).stride is None


def test_a_view_that_is_the_image_costs_nothing() -> None:
    images = RNG.normal(size=(1, 1, 4, 4)).astype(np.float32)
    assert np.shares_memory(View().back(images, (4, 4)), images)
