import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

import segline
from segline.config import build, compose
from segline.labels import IGNORE_INDEX, Labels
from segline.metrics.overlap import Overlap, score

EXCLUSIVE = Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil")
OVERLAPPING = Labels({"whole": [1, 2], "core": [2]}, scheme="overlapping")


@dataclass
class Batch:
    labels: Labels
    pred: NDArray[np.int64]
    mask: NDArray[np.int64]
    case: NDArray[np.int64]
    num_cases: int

    def measured(self, *parts: list[int]) -> Overlap:
        """A metric that saw the samples of each part as one batch; all of them at once by default."""
        overlap = Overlap(self.labels, self.num_cases)
        for part in parts or (list(range(len(self.mask))),):
            overlap.update(*(torch.from_numpy(values[part]) for values in (self.pred, self.mask, self.case)))
        return overlap


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    labels = draw(st.sampled_from([EXCLUSIVE, OVERLAPPING]))
    batch, num_cases = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    size = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    shape = (batch, *size) if labels.exclusive else (batch, 2, *size)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    classes = draw(st.integers(1, 3 if labels.exclusive else 2))  # fewer classes than there are: some are absent
    pred, mask = rng.integers(0, classes, shape), rng.integers(0, classes, shape)
    mask[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORE_INDEX
    return Batch(labels, pred, mask, rng.integers(0, num_cases, batch), num_cases)


def count_in_a_loop(batch: Batch) -> NDArray[np.int64]:
    """True positives, false positives, false negatives, true negatives of each case and class, pixel by pixel."""
    counts = np.zeros((batch.num_cases, batch.labels.num_classes, 4), np.int64)
    for i, k in itertools.product(range(len(batch.mask)), range(batch.labels.num_classes)):
        exclusive = batch.labels.exclusive
        pred, mask = (v[i].ravel() if exclusive else v[i, k].ravel() for v in (batch.pred, batch.mask))
        for p, m in zip(pred.tolist(), mask.tolist(), strict=True):
            if m != IGNORE_INDEX:
                found, true = (p == k, m == k) if exclusive else (p == 1, m == 1)
                counts[batch.case[i], k, {(1, 1): 0, (1, 0): 1, (0, 1): 2, (0, 0): 3}[found, true]] += 1
    return counts


@given(batches())
def test_counts_equal_a_loop_over_pixels(batch: Batch) -> None:
    assert np.array_equal(batch.measured().counts.numpy(), count_in_a_loop(batch))


@given(batches(), st.integers(0, 99))
def test_the_prediction_under_ignored_pixels_changes_nothing(batch: Batch, seed: int) -> None:
    before = batch.measured()
    ignored = batch.mask == IGNORE_INDEX
    other = np.random.default_rng(seed).integers(0, batch.labels.num_classes, ignored.sum())
    batch.pred[ignored] = other if batch.labels.exclusive else 1 - batch.pred[ignored]
    after = batch.measured()
    assert torch.equal(after.counts, before.counts)
    assert torch.equal(after.confusion, before.confusion)


@given(batches(), st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_and_batch_size_gives_the_same_integers(batch: Batch, random, size: int) -> None:
    order = list(range(len(batch.mask)))
    random.shuffle(order)
    parts = [order[start : start + size] for start in range(0, len(order), size)]  # the last one is uneven
    assert torch.equal(batch.measured(*parts).counts, batch.measured().counts)
    assert torch.equal(batch.measured(*parts).confusion, batch.measured().confusion)


def test_scores_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    pred, mask = rng.integers(0, 3, (5, 8, 9)), rng.choice([0, 1, 1, 2, IGNORE_INDEX], (5, 8, 9))
    overlap = Batch(EXCLUSIVE, pred, mask, np.arange(5), 5).measured()
    scores, valid = overlap.compute(), mask != IGNORE_INDEX
    expected = sklearn_metrics.confusion_matrix(mask[valid], pred[valid], labels=[0, 1, 2])
    assert np.array_equal(overlap.confusion.numpy(), expected)
    oracles = {
        "iou": sklearn_metrics.jaccard_score,
        "dice": sklearn_metrics.f1_score,
        "precision": sklearn_metrics.precision_score,
        "recall": sklearn_metrics.recall_score,
    }
    for name, oracle in oracles.items():
        of_class = oracle(mask[valid], pred[valid], average=None)
        assert [scores[f"{name}/{c}"] for c in EXCLUSIVE.names] == pytest.approx(of_class, rel=1e-12)
        assert scores[name] == pytest.approx(of_class[1:].mean(), rel=1e-12)  # without the background
    assert scores["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(mask[valid], pred[valid]))
    for name, oracle in (("iou", sklearn_metrics.jaccard_score), ("dice", sklearn_metrics.f1_score)):
        of_case = [oracle(m[v], p[v], average=None) for m, p, v in zip(mask, pred, valid, strict=True)]
        assert scores[f"{name}_case"] == pytest.approx(np.mean(of_case, 0)[1:].mean(), rel=1e-12)


def worked_example(absent: str = "skip", case_mean: str = "cases_first") -> dict[str, float]:
    """Three cases of four pixels: Dice of crop 1, 2/3 and absent; of weed 2/3, absent from both, predicted without being there."""
    mask = torch.tensor([[1, 1, 2, 2], [0, 1, 0, 0], [0, 0, 0, 0]])[:, None]
    pred = torch.tensor([[1, 1, 0, 2], [1, 1, 0, 0], [0, 0, 0, 2]])[:, None]
    overlap = Overlap(EXCLUSIVE, 4, absent, case_mean)  # a fourth case is never seen
    overlap.update(pred, mask, torch.arange(3))
    return overlap.compute()


def test_a_class_absent_from_truth_and_prediction_is_left_out_and_the_others_are_counted() -> None:
    scores = worked_example()
    assert (scores["cases/crop"], scores["cases/weed"], scores["cases/soil"]) == (2, 2, 3)
    assert scores["dice_case/crop"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["dice_case/weed"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["dice_case"] == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert scores["dice"] == pytest.approx((6 / 7 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("absent", "case_mean", "dice_case"),
    [
        ("skip", "classes_first", (5 / 6 + 2 / 3 + 0) / 3),
        ("skip", "together", (1 + 2 / 3 + 2 / 3 + 0) / 4),
        ("one", "cases_first", ((1 + 2 / 3 + 1) / 3 + (2 / 3 + 1 + 0) / 3) / 2),
        ("skip_all", "cases_first", (5 / 6 + 2 / 3) / 2),
    ],
)
def test_other_rules_of_absence_and_averaging_give_their_worked_values(
    absent: str, case_mean: str, dice_case: float
) -> None:
    assert worked_example(absent, case_mean)["dice_case"] == pytest.approx(dice_case)


def test_the_number_of_cases_follows_the_rule_of_absence() -> None:
    assert worked_example("one")["cases/weed"] == 3  # not the case that was never seen
    assert worked_example("skip_all")["cases/weed"] == 1


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="absent is 'zero'; expected one of skip, one, skip_all"):
        Overlap(EXCLUSIVE, 1, absent="zero")
    with pytest.raises(ValueError, match="case_mean is 'micro'; expected one of cases_first"):
        Overlap(EXCLUSIVE, 1, case_mean="micro")


@pytest.mark.parametrize("labels", [EXCLUSIVE, OVERLAPPING])
def test_where_everything_is_ignored_nothing_has_a_score(labels: Labels) -> None:
    mask = torch.full((2, 3, 3) if labels.exclusive else (2, 2, 3, 3), IGNORE_INDEX)
    overlap = Overlap(labels, 2, absent="one")
    overlap.update(torch.zeros_like(mask), mask, torch.arange(2))
    scores = overlap.compute()
    assert {name for name, value in scores.items() if value == value} == {f"cases/{c}" for c in labels.names}
    assert all(scores[f"cases/{c}"] == 0 for c in labels.names)


def test_precision_without_a_prediction_and_recall_without_a_truth_do_not_exist() -> None:
    counts = torch.tensor([[0, 0, 3, 1], [0, 3, 0, 1]])  # missed; invented
    assert score(counts, "precision").isnan().tolist() == [True, False]
    assert score(counts, "recall").isnan().tolist() == [False, True]
    assert score(counts, "dice").tolist() == [0, 0]


def test_windows_of_a_case_count_as_one_image_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    pred, mask = rng.integers(0, 3, (2, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    whole = Batch(EXCLUSIVE, pred, mask, np.array([2, 0]), 3).measured()
    corners = [(slice(None), slice(y, y + 4), slice(x, x + 4)) for y in (0, 4) for x in (0, 4)]
    windows = [np.concatenate([values[corner] for corner in corners]) for values in (pred, mask)]
    tiled = Batch(EXCLUSIVE, *windows, np.array([2, 0] * 4), 3).measured([0, 3, 6], [1, 2, 7, 5], [4])
    assert tiled.case_table() == whole.case_table()
    assert tiled.compute() == pytest.approx(whole.compute(), nan_ok=True)


def test_the_table_of_cases_has_scores_and_counts_of_each() -> None:
    mask, pred = torch.tensor([[[1, 1, 0, 2]], [[0, 0, 0, 0]]]), torch.tensor([[[1, 0, 0, 1]], [[0, 0, 0, 0]]])
    overlap = Overlap(EXCLUSIVE, 2)
    overlap.update(pred, mask, torch.arange(2))
    first, second = overlap.case_table()
    assert first["dice/crop"] == 0.5
    assert first["iou/crop"] == pytest.approx(1 / 3)
    assert [first[f"{part}/crop"] for part in ("tp", "fp", "fn")] == [1, 1, 1]
    assert first["dice/weed"] == 0
    assert (second["case"], second["dice/weed"], second["dice/soil"]) == (1, None, 1)


@settings(max_examples=20)
@given(batches(), st.integers(0, 2**16))
def test_states_of_two_processes_add_up_to_those_of_one(batch: Batch, seed: int) -> None:
    side = np.random.default_rng(seed).integers(0, 2, len(batch.mask))
    halves = [batch.measured(np.flatnonzero(side == rank).tolist()) for rank in (0, 1)]
    whole = batch.measured()
    merged = Overlap(batch.labels, batch.num_cases)
    merged.update(*(torch.from_numpy(v[:0]) for v in (batch.pred, batch.mask, batch.case)))
    for state in whole._defaults:
        setattr(merged, state, whole._reductions[state](torch.stack([getattr(half, state) for half in halves])))
    assert merged.case_table() == whole.case_table()
    assert merged.compute() == pytest.approx(whole.compute(), rel=0, abs=0, nan_ok=True)


TWO_PROCESSES = """
import sys
import torch, torch.distributed as dist
from segline.labels import Labels
from segline.metrics.overlap import Overlap

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
pred, mask = torch.load("samples.pt")
mine = [0, 1, 4, 5, 6] if rank == 0 else [2, 3]  # case 1 lies on both, and one batch is uneven
overlap = Overlap(Labels({"soil": 0, "crop": 1, "weed": 2}, background="soil"), 4)
for start in range(0, len(mine), 2):
    part = mine[start : start + 2]
    overlap.update(pred[part], mask[part], torch.tensor([i // 2 for i in part]))
with overlap.sync_context():
    table = overlap.case_table()
torch.save((table, overlap.compute()), f"rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_real_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(segline.__file__).parents[1]))
    rng = np.random.default_rng(0)
    pred, mask = rng.integers(0, 3, (7, 6, 6)), rng.choice([0, 1, 2, IGNORE_INDEX], (7, 6, 6))
    torch.save((torch.from_numpy(pred), torch.from_numpy(mask)), tmp_path / "samples.pt")
    commands = [[sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "meet")] for rank in (0, 1)]
    started = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) for command in commands]
    errors = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    one = Batch(EXCLUSIVE, pred, mask, np.arange(7) // 2, 4).measured()
    for rank in (0, 1):
        table, scores = torch.load(tmp_path / f"rank{rank}.pt")
        assert table == one.case_table()
        assert scores == one.compute()


@pytest.mark.slow  # imports Lightning
def test_a_metric_of_torchmetrics_is_added_by_a_few_lines_of_yaml() -> None:
    from segline.module import Meters

    config = compose(["metrics=mcc"])
    labels = Labels({name: k for k, name in enumerate(config.data.labels.classes)})
    made = build(config.metrics)
    meters = Meters(labels, made["overlap"](labels, 2), made["further"])
    logits, mask = torch.randn(2, labels.num_classes, 8, 8), torch.randint(0, labels.num_classes, (2, 8, 8))
    mask[:, :2] = IGNORE_INDEX
    batch = {"mask": mask, "case": torch.arange(2)}
    meters.update(torch.tensor(0.0), logits, batch)
    meters.update(torch.tensor(0.0), logits, batch | {"mask": torch.full_like(mask, IGNORE_INDEX)})
    expected = sklearn_metrics.matthews_corrcoef(mask[:, 2:].flatten(), logits.argmax(1)[:, 2:].flatten())
    assert meters.compute()["mcc"] == pytest.approx(expected, abs=1e-5)
