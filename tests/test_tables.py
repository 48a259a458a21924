from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segline.labels import Labels
from segline.tables import append_row, class_table, drop_epochs_from, read_rows, write_cases

LABELS = Labels({"background": 0, "bare_soil": 1, "roof|tile": 2}, background="background")
SCORES = {
    "iou": 0.55,
    "dice": 0.70954,
    "precision": 0.6,
    "recall": 0.8,
    "dice_case": 0.65,
    "iou/background": 0.9,
    "dice/background": 0.95,
    "precision/background": 1.0,
    "recall/background": 0.899,
    "dice_case/background": 0.9449,
    "cases/background": 12.0,
    "iou/bare_soil": 0.55,
    "dice/bare_soil": 0.7095,
    "precision/bare_soil": 0.6,
    "recall/bare_soil": 0.8,
    "dice_case/bare_soil": 0.65,
    "cases/bare_soil": 7.0,
    "iou/roof|tile": math.nan,
    "dice/roof|tile": math.nan,
    "cases/roof|tile": 0.0,
}
HEAD = ["IoU", "Dice", "Precision", "Recall", "Dice/case", "Cases"]
CELLS = [
    ["0.900", "0.950", "1.000", "0.899", "0.945", "12"],
    ["0.550", "0.710", "0.600", "0.800", "0.650", "7"],
    ["–", "–", "–", "–", "–", "0"],
    ["0.550", "0.710", "0.600", "0.800", "0.650", ""],
]


def test_a_plain_table_has_every_score_in_its_column() -> None:
    lines = class_table(SCORES, LABELS, "val").splitlines()
    head, _, *classes, _, mean = lines
    assert head.split() == ["val", *HEAD]
    assert [line.split() for line in classes] == [
        ["background", *CELLS[0]],
        ["bare_soil", *CELLS[1]],
        ["roof|tile", *CELLS[2]],
    ]
    assert mean.startswith("mean without background  ")
    assert mean.removeprefix("mean without background").split() == CELLS[3][:-1]
    assert {len(line) for line in lines} == {len(head)}
    for column, name in enumerate(HEAD):  # numbers end below the end of their column's name
        end = head.index(f" {name}") + 1 + len(name)
        assert classes[0][:end].endswith(CELLS[0][column])
    assert set(lines[1]) == set(lines[-2]) == {"-", " "}


def test_a_markdown_table_has_every_score_in_its_cell() -> None:
    lines = class_table(SCORES, LABELS, "val", style="markdown").splitlines()
    # A bar within a name is escaped, so that it starts no cell.
    cells = [
        [cell.strip().replace("\0", "|") for cell in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines
    ]
    assert cells[0] == ["Class", *HEAD]
    assert all(set(cell) <= {"-", ":"} for cell in cells[1])
    assert [cell.endswith(":") for cell in cells[1]] == [False, *[True] * 6]
    assert cells[2:] == [
        ["background", *CELLS[0]],
        ["bare_soil", *CELLS[1]],
        ["roof|tile", *CELLS[2]],
        ["mean without background", *CELLS[3]],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_latex_table_has_every_score_in_its_cell_and_escapes_names() -> None:
    lines = class_table(SCORES, LABELS, "val", style="latex").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrr}"
    assert lines[-1] == r"\end{tabular}"
    assert lines.count(r"\hline") == 4
    rows = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]
    assert rows == [
        ["Class", *HEAD],
        ["background", *CELLS[0]],
        [r"bare\_soil", *CELLS[1]],
        ["roof|tile", *["--"] * 5, "0"],
        ["mean without background", *CELLS[3]],
    ]


def test_without_a_background_the_mean_is_of_all_classes() -> None:
    table = class_table({"iou": 0.5}, Labels({"car": 0, "road": 1}), "test")
    assert table.splitlines()[-1].split() == ["mean", "0.500", "–", "–", "–", "–"]


def test_rows_come_back_as_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.csv"
    rows = [{"epoch": 0, "step": 10, "a/b": 0.1 + 0.2, "lr": 1e-7}, {"epoch": 1, "step": 20, "a/b": -3.0, "lr": 1 / 3}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    text = path.read_text().splitlines()
    assert text[0] == "epoch,step,a/b,lr"
    assert text[1].startswith("0,10,0.30000000000000004,")
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_columns_are_added_and_rows_may_lack_any_of_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [
        {"epoch": 0, "train/loss": 1.0},
        {"epoch": 1, "train/loss": 0.9, "val/loss": 0.8},  # the first epoch that was validated
        {"epoch": 2, "train/loss": 0.7},
        {"epoch": 3, "lr": 0.1, "val/loss": 0.6},
    ]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["epoch", "train/loss", "val/loss", "lr"]
    assert table[2] == {"epoch": "2", "train/loss": "0.7", "val/loss": "", "lr": ""}


def test_nan_is_kept_and_is_no_gap(tmp_path: Path) -> None:
    append_row(tmp_path / "m.csv", {"epoch": 0, "val/dice": math.nan, "val/loss": math.inf})
    (row,) = read_rows(tmp_path / "m.csv")
    assert math.isnan(row["val/dice"])
    assert row["val/loss"] == math.inf


def test_a_table_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == []
    drop_epochs_from(tmp_path / "none.csv", 0)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(("epoch", "kept"), [(0, 0), (2, 2), (3, 3), (9, 4)])
def test_truncation_drops_the_epoch_itself_and_all_later_ones(tmp_path: Path, epoch: int, kept: int) -> None:
    path = tmp_path / "metrics.csv"
    rows = [{"epoch": 0}, {"epoch": 1, "val/loss": 0.8}, {"epoch": 2, "val/loss": 0.7}, {"epoch": 3, "lr": 1.0}]
    for row in rows:
        append_row(path, row)
    drop_epochs_from(path, epoch)
    assert read_rows(path) == rows[:kept]
    append_row(path, {"epoch": epoch, "val/loss": 0.5})
    assert read_rows(path) == [*rows[:kept], {"epoch": epoch, "val/loss": 0.5}]


def test_a_failed_write_leaves_the_old_table_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    append_row(path, {"epoch": 0, "val/loss": 0.8})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="could not convert"):
        append_row(path, {"epoch": 1, "val/loss": "no number"})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_the_table(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        append_row(tmp_path / "metrics.csv", {"epoch": 0})
    finally:
        os.umask(before)
    assert (tmp_path / "metrics.csv").stat().st_mode & 0o777 == 0o644


def test_cases_are_read_back_by_pyarrow_with_their_types(tmp_path: Path) -> None:
    rows = [
        {"split": "val", "case": "a", "dice/cell": None, "dice/rare": None, "tp/cell": 0},
        {"split": "test", "case": "b", "dice/cell": 0.25, "dice/rare": None, "tp/cell": 2**40, "extra": 1.5},
    ]
    write_cases(tmp_path / "cases.parquet", rows)
    table = pq.read_table(tmp_path / "cases.parquet")
    assert table.column_names == ["split", "case", "dice/cell", "dice/rare", "tp/cell", "extra"]
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "double", "double", "int64", "double"]
    assert table.to_pylist() == [{**rows[0], "extra": None}, rows[1]]
    assert [file.name for file in tmp_path.iterdir()] == ["cases.parquet"]


def test_cases_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "cases.parquet"
    write_cases(path, [{"case": "a"}])
    with pytest.raises(pa.ArrowInvalid, match="object"):
        write_cases(path, [{"case": object()}])
    assert pq.read_table(path).to_pylist() == [{"case": "a"}]
    assert list(tmp_path.iterdir()) == [path]


def test_no_cases_are_an_empty_table(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases.parquet", [])
    assert pq.read_table(tmp_path / "cases.parquet").num_rows == 0
