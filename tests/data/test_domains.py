"""Each domain's synthetic default goes through the code of real files: found, split by group, normalised and served."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from segline.config import build, compose
from segline.data.describe import describe
from segline.io.image import decode
from segline.io.raster import RasterFile
from segline.labels import IGNORE_INDEX

#: Domain -> bands, and dtypes of what its files hold.
DOMAINS = {
    "satellite": (4, {"uint16"}),
    "biomedical": (1, {"uint16"}),
    "driving": (3, {"uint8"}),
    "biomedical3d": (1, {"float32", "int16", "uint8", "uint16"}),
}

#: Shares of pixels in percent, ignored ones included, as counted by those who put the real sets together.
SHARES = {
    "isbi2012": {"interior": 78.08, "membrane": 21.92},
    "dsb2018": {"background": 87.01, "nucleus": 12.99},
    "hippocampus": {"background": 94.78, "anterior": 2.73, "posterior": 2.49},
    "dubai": {"land": 47.95, "water": 21.13, "building": 12.04, "vegetation": 8.81, "road": 8.30},
    "nrcan": {"background": 36.2, "vegetation": 39.1, "hydro": 18.4, "roads": 2.4, "buildings": 2.2},
    "cwfid": {"soil": 94.60, "weed": 3.90, "crop": 1.50},
    "ccp": {"background": 76.73, "dress": 3.25, "skin": 3.02, "coat": 1.71, "pants": 1.57, "hair": 1.31},
}


def stored_type(path: Path) -> str:
    """Type of a file's pixels."""
    if path.suffix == ".tif":
        return str(RasterFile(path).dtype)
    return str(nib.load(path).get_data_dtype() if ".nii" in path.name else decode(path).dtype)


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
    assert {stored_type(case.images[0]) for cases in data.cases.values() for case in cases} <= dtypes
    for split in ("train", "val"):
        assert (data.pixels(split) > 0).all(), f"a class is missing in {split}"
    assert data.notes == []
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (config.batch_size, bands, *config.window)
    assert batch["mask"].shape == (config.batch_size, *config.window)
    assert torch.isfinite(batch["image"]).all()
    assert set(batch["mask"].unique().tolist()) <= {*range(data.labels.num_classes), IGNORE_INDEX}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHARES, "camvid", "sen1floods11", "hippocampus_regions"])
def test_a_real_data_set_is_read_as_it_was_counted(real_data: Path, name: str) -> None:
    data = build(compose([f"data={name}", "data.num_workers=0"]).data)
    data.prepare()
    total = sum(int(np.prod(facts.shape)) for facts in data.facts.values())
    counts = sum(facts.pixels for facts in data.facts.values())
    shares = {c: 100 * float(n) / total for c, n in zip(data.labels.names, counts, strict=True)}
    for class_name, share in SHARES.get(name, {}).items():
        assert shares[class_name] == pytest.approx(share, abs=0.06), class_name
    if name == "camvid":
        train = data.pixels("train") / (147 * 360 * 480) * 100
        assert train.tolist() == pytest.approx(
            [17.06, 23.14, 0.97, 31.66, 4.50, 9.71, 1.20, 1.10, 5.84, 0.67, 0.25], abs=0.01
        )
    if name == "hippocampus_regions":
        assert shares == pytest.approx({"hippocampus": 5.22, "anterior": 2.73}, abs=0.01)
    if name == "sen1floods11":
        said = " ".join(data.notes)
        assert "Ghana_83483" in said  # its mask is ignored everywhere
        assert "Paraguay_34417" in said  # its image is NaN everywhere
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (data.batch_size, data.in_channels, *data.window)
    assert torch.isfinite(batch["image"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camvid", "dsb2018", "dubai", "hippocampus", "isbi2012"])
def test_a_real_data_set_is_split_by_its_unit(real_data: Path, name: str) -> None:
    data = build(compose([f"data={name}", "data.augment=null"]).data)
    data.prepare()
    train, val = data.cases["train"], data.cases["val"]
    shared = {case.group for case in train} & {case.group for case in val}
    if name == "camvid":
        assert (len(train), len(val), shared) == (147, 34, {"0016E5"})
        assert any("0016E5 is in more than one part" in line for line in describe(data))
        return
    assert not shared
    groups = [len({case.group for case in part}) for part in (train, val)]
    assert sum(groups) == {"dsb2018": 125, "dubai": 8, "hippocampus": 208, "isbi2012": 5}[name]
    assert groups[1] / sum(groups) == pytest.approx(0.2, abs=0.06)
    if name == "isbi2012":  # one run: no section of training lies between those of validation
        run = [int(case.name) for case in val]
        assert not any(min(run) < int(case.name) < max(run) for case in train)
