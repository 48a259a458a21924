"""Parts are made of whole groups, and stay what they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segline.data.cases import Case
from segline.data.splits import cut_blocks, split_cases


def case(name: str, group: str | None = None, split: str | None = None) -> Case:
    return Case(name, group or name, (Path(f"{name}.png"),), (Path(f"{name}_m.png"),), split)


def named(names: Iterable[str]) -> list[Case]:
    return [case(name) for name in names]


def places(parts: dict[str, list[Case]]) -> dict[str, str]:
    return {one.name: split for split, cases in parts.items() for one in cases}


@given(st.integers(2, 120), st.integers(1, 4), st.sampled_from([(0.2, 0.0), (0.2, 0.2), (0.34, 0.33)]))
def test_a_group_is_in_one_part_and_no_case_is_lost(groups: int, each: int, shares: tuple[float, float]) -> None:
    cases = [case(f"g{g}_{n}", f"g{g}") for g in range(groups) for n in range(each)]
    try:
        parts = split_cases(cases, *shares)
    except ValueError:
        assert groups < 3 or groups >= 50  # two groups don't make three parts; draws of a hash may miss a part
        return
    where = {split: {one.group for one in part} for split, part in parts.items()}
    assert sum(len(found) for found in where.values()) == groups
    assert sum(len(part) for part in parts.values()) == len(cases)


def test_the_order_of_the_cases_changes_nothing() -> None:
    for number in (12, 200):
        cases = named(f"s{n}" for n in range(number))
        shuffled = [cases[i] for i in np.random.default_rng(0).permutation(number)]
        assert places(split_cases(cases, 0.2, 0.1)) == places(split_cases(shuffled, 0.2, 0.1))


def test_parts_are_the_same_on_every_machine() -> None:
    # The two least of SHA-256, written down: Python's own hash of texts differs between processes.
    assert [one.name for one in split_cases(named("abcdefghij"), 0.2, 0.0)["val"]] == ["d", "j"]


def test_shares_are_kept() -> None:
    parts = split_cases(named(f"s{n}" for n in range(4000)), 0.2, 0.1)
    assert len(parts["val"]) / 4000 == pytest.approx(0.2, abs=0.02)
    assert len(parts["test"]) / 4000 == pytest.approx(0.1, abs=0.02)
    few = split_cases(named(f"s{n}" for n in range(10)), 0.2, 0.1)
    assert (len(few["train"]), len(few["val"]), len(few["test"])) == (7, 2, 1)


def test_new_cases_do_not_move_old_ones() -> None:
    before = places(split_cases(named(f"s{n}" for n in range(100)), 0.2, 0.2))
    after = places(split_cases(named(f"s{n}" for n in range(150)), 0.2, 0.2))
    assert {name: after[name] for name in before} == before


def test_a_set_that_outgrows_the_few_keeps_most_of_its_parts() -> None:
    before = places(split_cases(named(f"s{n}" for n in range(49)), 0.2, 0.2))
    after = places(split_cases(named(f"s{n}" for n in range(50)), 0.2, 0.2))
    assert sum(after[name] != split for name, split in before.items()) <= 10  # by chance alone: 27


def test_few_groups_give_each_part_one() -> None:
    parts = split_cases(named("abc"), 0.1, 0.1)
    assert [len(parts[split]) for split in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"val part is empty: 3 cases in 1 group; set data.group"):
        split_cases([case(name, "one") for name in "abc"], 0.2, 0.0)
    assert len(split_cases(named("a"), 0.0, 0.0)["train"]) == 1


def test_a_part_that_is_not_needed_may_be_empty() -> None:
    tests = [case(name, split="test") for name in "ab"]
    assert [len(part) for part in split_cases(tests, 0.2, 0.0, needed=()).values()] == [0, 0, 2]
    assert [len(part) for part in split_cases(named("a"), 0.2, 0.0, needed=("train",)).values()] == [1, 0, 0]
    with pytest.raises(ValueError, match="train part is empty"):
        split_cases(tests, 0.2, 0.0)


def test_an_official_split_stands() -> None:
    cases = [case(f"t{n}", split="train") for n in range(10)] + [case("v", split="val"), case("x", split="test")]
    assert places(split_cases(cases, 0.5, 0.5 - 1e-9)) == {one.name: one.split for one in cases}


def test_a_part_that_the_official_split_lacks_is_cut_from_its_training_part() -> None:
    cases = [case(f"t{n}", split="train") for n in range(10)] + [case(f"x{n}", split="test") for n in range(3)]
    parts = split_cases(cases, 0.2, 0.4)
    assert {one.name for one in parts["test"]} == {"x0", "x1", "x2"}
    assert len(parts["val"]) == 2
    assert all(one.split == "train" for one in parts["val"] + parts["train"])


@pytest.mark.parametrize(("groups", "folds"), [(6, 5), (23, 5), (200, 3)])
def test_each_group_is_tested_by_one_fold(groups: int, folds: int) -> None:
    cases = [case(f"g{g}_{n}", f"g{g}") for g in range(groups) for n in range(2)]
    tested = []
    for fold in range(folds):
        parts = split_cases(cases, 0.2, 0.3, fold=[fold, folds])
        where = {split: {one.group for one in part} for split, part in parts.items()}
        assert sum(len(part) for part in parts.values()) == len(cases)
        assert sum(len(found) for found in where.values()) == groups
        assert where["val"]
        assert where["train"]
        tested.append(where["test"])
    assert sorted(len(found) for found in tested) == sorted(len(range(fold, groups, folds)) for fold in range(folds))
    assert set().union(*tested) == {one.group for one in cases}


def test_an_official_test_part_is_left_out_of_folds() -> None:
    cases = [*named("abcdefgh"), case("x", split="test")]
    official = [replace(one, split=one.split or "train") for one in cases]
    parts = split_cases(official, 0.2, 0.0, fold=[0, 2])
    assert "x" not in places(parts)
    assert len(parts["test"]) == 4


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        ([5, 5], "data.fold is .5, 5.; expected which fold, from 0, and how many there are, such as .0,5."),
        ([-1, 5], "data.fold is"),
        ([0, 1], "data.fold is"),
        ([0], "data.fold is"),
        ([0, 8], "8 folds need more groups than the 8 there are"),
    ],
)
def test_folds_that_cannot_be_are_refused(fold: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split_cases(named("abcdefgh"), 0.2, 0.0, fold=fold)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_shares_that_leave_nothing_are_refused(val: float, test: float) -> None:
    with pytest.raises(ValueError, match=r"data.val is .* and data.test"):
        split_cases(named("abc"), val, test)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_blocks_cover_a_raster_once_and_none_is_a_sliver(rows: int, columns: int, size: int) -> None:
    hits = np.zeros((rows, columns), int)
    blocks = cut_blocks(replace(case("scene"), split="train"), (rows, columns), size)
    for block in blocks:
        assert block.block is not None
        hits[block.block] += 1
        for part, length in zip(block.block, (rows, columns), strict=True):
            assert min(size, length) / 2 <= part.stop - part.start <= max(1.5 * size, size + 1)
    assert (hits == 1).all()
    assert len({block.name for block in blocks}) == len({block.group for block in blocks}) == len(blocks)
    assert {block.split for block in blocks} == {"train"}
