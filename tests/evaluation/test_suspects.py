import numpy as np

from segline.evaluation.suspects import find_suspects, sure_and_wrong
from segline.labels import IGNORE_INDEX, Labels

LABELS = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")


def say(mask: np.ndarray, sure: float = 0.95) -> np.ndarray:
    """Probabilities of a network that says a mask, `[K, *S]`."""
    probs = np.full((3, *mask.shape), (1 - sure) / 2, np.float32)
    for k in range(3):
        probs[k][mask == k] = sure
    return probs


def test_a_wrong_label_is_found_and_a_ragged_border_is_not() -> None:
    truth = np.zeros((200, 300), np.uint8)
    truth[20:60, 20:60] = 1
    label = truth.copy()
    label[120:130, 200:215] = 2  # a weed that is none
    label[20:60, 60] = 1  # a border that is drawn one pixel too far
    label[150:170, 20:40] = IGNORE_INDEX
    pred = truth.copy()
    pred[150:170, 20:40] = 2
    places = sure_and_wrong(say(pred), pred, label, LABELS)
    (suspect,) = find_suspects("field", places, pred, label, LABELS)
    assert (suspect.case, suspect.label, suspect.pred, suspect.pixels) == ("field", "weed", "soil", 150)
    rows, columns = suspect.window
    assert rows.start <= 120 < 130 <= rows.stop
    assert columns.start <= 200 < 215 <= columns.stop
    assert rows.stop - rows.start == columns.stop - columns.start == 96


def test_where_the_network_is_unsure_nobody_is_suspected() -> None:
    truth, label = np.zeros((50, 50), np.uint8), np.zeros((50, 50), np.uint8)
    label[10:30, 10:30] = 1
    assert not sure_and_wrong(say(truth, 0.85), truth, label, LABELS).any()
    assert sure_and_wrong(say(truth, 0.95), truth, label, LABELS).sum() == 400


def test_a_class_that_a_threshold_decides_for_is_as_sure_as_its_own_probability() -> None:
    probs = np.array([0.95, 0.03, 0.02], np.float32).reshape(3, 1, 1)
    pred, label = np.full((1, 1), 1, np.uint8), np.full((1, 1), 2, np.uint8)
    assert not sure_and_wrong(probs, pred, label, LABELS).any()
    assert sure_and_wrong(probs, np.zeros_like(pred), label, LABELS).all()
    empty = np.full((1, 1), IGNORE_INDEX, np.uint8)
    assert not sure_and_wrong(np.full_like(probs, np.nan), empty, empty, LABELS).any()
    labels = Labels({"whole": [1, 2]}, scheme="overlapping")
    no = np.zeros((1, 1, 1), np.uint8)
    assert not sure_and_wrong(probs[:1], no, no, labels).any()


def test_the_largest_come_first_and_of_a_volume_a_slice_is_shown() -> None:
    truth, label = np.zeros((12, 60, 70), np.uint8), np.zeros((12, 60, 70), np.uint8)
    label[2:6, 5:15, 5:15] = 1
    label[7:11, 30:50, 30:50] = 2
    suspects = find_suspects("scan", sure_and_wrong(say(truth), truth, label, LABELS), truth, label, LABELS)
    assert [(s.label, s.pixels) for s in suspects] == [("weed", 1600), ("crop", 400)]
    assert suspects[0].window == (slice(9, 10), slice(0, 60), slice(0, 70))
    assert len(find_suspects("scan", label > 0, truth, label, LABELS, most=1)) == 1


def test_of_overlapping_classes_a_sure_no_and_a_sure_yes_count() -> None:
    labels = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")
    probs = np.full((2, 1, 4), 0.5, np.float32)
    probs[0, 0, :2], probs[1, 0, 2] = (0.95, 0.05), 0.95
    mask = np.zeros((2, 1, 4), np.uint8)
    mask[0, 0, 1] = 1
    assert sure_and_wrong(probs, (probs >= 0.5).astype(np.uint8), mask, labels).tolist() == [[True, True, True, False]]
    mask[:, 0, :3] = IGNORE_INDEX
    assert not sure_and_wrong(probs, (probs >= 0.5).astype(np.uint8), mask, labels).any()
