"""What holds for the scenes of every domain, read as the pipeline reads them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from segline.config import compose
from segline.data.cases import find_cases
from segline.data.synthetic import biomedical, biomedical3d, driving, satellite
from segline.io.open import open_image, open_mask
from segline.labels import Labels

DOMAINS = ["satellite", "biomedical", "biomedical3d", "driving"]
MODULES = {"satellite": satellite, "biomedical": biomedical, "biomedical3d": biomedical3d, "driving": driving}
Scenes = Callable[[str], Path]


@functools.cache
def config(domain: str) -> DictConfig:
    return compose([f"data={domain}"]).data  # type: ignore[no-any-return]


def labels(domain: str) -> Labels:
    given = OmegaConf.to_container(config(domain).labels)
    assert isinstance(given, dict)
    return Labels(**{str(name): value for name, value in given.items() if name != "_target_"})


def read(domain: str, root: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Image `[C, *S]` and mask `[*S]` of each scene."""
    data = config(domain)
    for case in find_cases(root, data.images, data.masks, data.group)[0]:
        image = open_image(case.images)
        whole = tuple(slice(0, size) for size in image.shape)
        yield image.read(whole), open_mask(case.masks, labels(domain), like=image).read(whole)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_bytes_are_written_again_and_more_scenes_change_no_others(
    domain: str, scenes: Scenes, write: Callable[..., Path], tmp_path: Path
) -> None:
    np.random.seed(5)
    random.seed(5)
    again = write(domain, tmp_path / "again", count=2)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 4
    assert all((scenes(domain) / file).read_bytes() == (again / file).read_bytes() for file in files)


@pytest.mark.parametrize("domain", DOMAINS)
def test_another_seed_makes_other_scenes(
    domain: str, scenes: Scenes, write: Callable[..., Path], tmp_path: Path
) -> None:
    other = write(domain, tmp_path / "other", count=1, seed=1)
    files = [path.relative_to(other) for path in other.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all((scenes(domain) / file).read_bytes() != (other / file).read_bytes() for file in files)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_configs_classes_are_those_in_the_files(domain: str) -> None:
    module = MODULES[domain]
    assert OmegaConf.to_container(config(domain).labels.classes) == module.CLASSES
    assert config(domain).labels.colors == getattr(module, "COLORS", None)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_and_some_are_rare(domain: str, scenes: Scenes) -> None:
    found = labels(domain)
    pixels = sum(np.bincount(mask.ravel(), minlength=256) for _, mask in read(domain, scenes(domain)))
    shares = pixels[: found.num_classes] / pixels[: found.num_classes].sum()
    assert shares.min() > 0.002
    assert shares.max() > 10 * shares.min()
    assert pixels[found.num_classes : 255].sum() == 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_bands_and_dimensions_are_the_configs_and_no_scene_is_flat(domain: str, scenes: Scenes) -> None:
    data, shapes = config(domain), set()
    for image, mask in read(domain, scenes(domain)):
        assert len(image) == data.in_channels
        assert mask.ndim == data.spatial_dims
        for k in np.unique(mask[mask != 255]):  # texture and noise within each class
            assert (np.nanstd(image[:, mask == k], axis=1) > 0.01 * np.nanstd(image)).all()
        shapes.add(mask.shape)
    assert len(shapes) == 1 if domain == "driving" else len(shapes) > 1


@pytest.mark.parametrize("domain", ["biomedical", "driving"])
def test_scenes_lie_in_groups_of_four(domain: str, scenes: Scenes) -> None:
    data = config(domain)
    groups = [case.group for case in find_cases(scenes(domain), data.images, data.masks, data.group)[0]]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [4, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "most"), [("satellite", 0.8), ("biomedical", 0.65), ("biomedical3d", 0.45), ("driving", 0.5)]
)
def test_no_rule_on_single_pixels_solves_them(domain: str, most: float, scenes: Scenes) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import jaccard_score

    rng, features, classes = np.random.default_rng(0), [], []
    for image, mask in read(domain, scenes(domain)):
        if config(domain).normalize == "case":
            image = (image - image.mean()) / image.std()
        some = rng.choice(np.flatnonzero(mask != 255), 8_000)
        features.append(image.reshape(len(image), -1)[:, some].T)
        classes.append(mask.ravel()[some])
    half = len(features) // 2 + 1
    rule = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    rule.fit(np.concatenate(features[:half]), np.concatenate(classes[:half]))
    found = rule.predict(np.concatenate(features[half:]))
    iou = jaccard_score(np.concatenate(classes[half:]), found, average="macro", zero_division=0)
    assert 0.1 < iou < most
