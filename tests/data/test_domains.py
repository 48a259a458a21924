"""Each domain's synthetic default goes through the code of real files: found, split by group, normalised and served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from segline.config import build, compose
from segline.labels import IGNORE_INDEX

#: Domain -> bands, and dtypes of what its files hold.
DOMAINS = {
    "satellite": (4, {"uint16"}),
    "biomedical": (1, {"uint16"}),
    "driving": (3, {"uint8"}),
    "biomedical3d": (1, {"float32", "int16", "uint8", "uint16"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOMAINS)
def test_a_synthetic_default_is_whole(name: str) -> None:
    bands, dtypes = DOMAINS[name]
    config = compose([f"data={name}", "data.num_workers=0"]).data
    OmegaConf.update(config, "augment", None)
    data = build(config)
    data.prepare()
    groups = {split: {case.group for case in cases} for split, cases in data.cases.items()}
    assert groups["train"]
    assert groups["val"]
    assert not groups["train"] & groups["val"]
    assert {facts.dtype for facts in data.facts.values()} <= dtypes
    for split in ("train", "val"):
        assert (data.pixels(split) > 0).all(), f"a class is missing in {split}"
    assert data.notes == []
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (config.batch_size, bands, *config.window)
    assert batch["mask"].shape == (config.batch_size, *config.window)
    assert torch.isfinite(batch["image"]).all()
    assert set(batch["mask"].unique().tolist()) <= {*range(data.labels.num_classes), IGNORE_INDEX}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "dsb2018", "dubai", "hippocampus", "isbi2012"])
def test_a_real_data_set_is_split_by_its_unit(real_data: Path, name: str) -> None:
    data = build(compose([f"data={name}", "data.augment=null"]).data)
    data.prepare()
    train, val = data.cases["train"], data.cases["val"]
    shared = {case.group for case in train} & {case.group for case in val}
    if name == "camvid":
        assert (len(train), len(val), shared) == (147, 34, {"0016E5"})
        assert any("0016E5 is in more than one part" in line for line in data.describe())
        return
    assert not shared
    groups = [len({case.group for case in part}) for part in (train, val)]
    assert sum(groups) == {"dsb2018": 125, "dubai": 8, "hippocampus": 208, "isbi2012": 23}[name]
    assert groups[1] / sum(groups) == pytest.approx(0.2, abs=0.06)
    if name == "isbi2012":
        assert max(int(case.name) for case in train) < min(int(case.name) for case in val)
