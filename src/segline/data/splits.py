"""Training, validation and test parts: whole groups, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from segline.data.cases import SPLITS, Case
from segline.words import count_of

#: With fewer groups than this, shares are cut from the groups sorted by hash; a threshold on the hash would miss them by far.
_FEW = 50


def split_cases(
    cases: Sequence[Case],
    val: float,
    test: float,
    needed: Sequence[str] = ("train", "val"),
    fold: Sequence[int] | None = None,
) -> dict[str, list[Case]]:
    """Assign cases to parts by the hash of their groups' names, so that new cases don't move old ones.

    Official splits stand. A part that they lack is cut from the official training part, if a share of it is asked for. In a
    cross-validation the groups of a fold are the test part, and an official one is left out.

    Args:
        cases: All cases.
        val: Share of the groups for validation.
        test: Share of the groups for the test.
        needed: Parts that must not be empty, those of training by default; that of validation may be if its share is 0.
        fold: Which fold is tested, from 0, and how many there are; None: no cross-validation.

    Raises:
        ValueError: Shares that leave nothing to train on, a part that is needed is empty, or a fold that does not exist.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise ValueError(
            f"data.val is {val} and data.test {test}; expected shares of 0 or more that leave something to train on"
        )
    parts: dict[str, list[Case]] = {split: [case for case in cases if case.split == split] for split in SPLITS}
    free = [case for case in cases if case.split is None]
    if any(parts.values()) and not free:  # an official split, perhaps without a validation part
        free, parts["train"] = parts["train"], []
        val, test = (0.0 if parts["val"] else val), (0.0 if parts["test"] else test)
    if fold is not None:
        held = _fold({case.group for case in free}, fold)
        parts["test"] = [case for case in free if case.group in held]
        free, test = [case for case in free if case.group not in held], 0.0
    chosen = _assign(sorted({case.group for case in free}), val, test)
    for case in free:
        parts[chosen[case.group]].append(case)
    for split in needed:
        if not parts[split] and (split != "val" or val > 0):
            groups = len({case.group for case in cases})
            raise ValueError(
                f"the {split} part is empty: {count_of(len(cases), 'case')} in {count_of(groups, 'group')}; set data.group to cut finer, "
                "data.blocks to cut rasters, or other shares data.val and data.test"
            )
    return parts


def _fold(groups: set[str], fold: Sequence[int]) -> set[str]:
    """The groups of one of several folds of about equal size."""
    number, count = fold if len(fold) == 2 else (-1, 0)
    if not 0 <= number < count or count < 2:
        raise ValueError(
            f"data.fold is {list(fold)}; expected which fold, from 0, and how many there are, such as [0,5] to [4,5]"
        )
    if len(groups) <= count:
        raise ValueError(
            f"{count} folds need more groups than the {len(groups)} there are; set fewer folds, or data.group to cut finer"
        )
    return set(sorted(groups, key=_hash)[number::count])


def _assign(groups: list[str], val: float, test: float) -> dict[str, str]:
    """Split of each group."""
    if len(groups) < _FEW:
        # The least hashes are drawn first, as by the threshold, so that a set which grows beyond the few keeps its parts.
        ranked = sorted(groups, key=_hash, reverse=True)
        counts = {split: _count(len(groups), share) for split, share in (("test", test), ("val", val))}
        chosen = dict.fromkeys(ranked, "train")
        for split in ("test", "val"):
            for _ in range(min(counts[split], max(len(ranked) - 1, 0))):
                chosen[ranked.pop()] = split
        return chosen
    draws = {group: _hash(group) for group in groups}
    return {group: "test" if draw < test else "val" if draw < test + val else "train" for group, draw in draws.items()}


def _count(groups: int, share: float) -> int:
    """How many groups a share is: at least one where any is asked for."""
    return max(1, round(groups * share)) if share > 0 else 0


def _hash(text: str) -> float:
    """A number in 0..1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def cut_blocks(case: Case, shape: tuple[int, ...], size: int) -> list[Case]:
    """Blocks of a raster, each a case and a group of its own: one large scene is split in space.

    A rest of less than half a block goes to the block before it.
    """
    blocks = []
    for block in product(*(_cut(length, size) for length in shape)):
        name = f"{case.name}/{'_'.join(str(part.start) for part in block)}"
        blocks.append(replace(case, name=name, group=name, block=block))
    return blocks


def _cut(length: int, size: int) -> list[slice]:
    count = max(1, (length + size // 2) // size)
    return [slice(i * size, length if i == count - 1 else (i + 1) * size) for i in range(count)]
