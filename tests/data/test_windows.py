"""Samples follow from their index alone: any number of workers, processes and resumes sees the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from segline.augment import Augment, Turn, Warp
from segline.data import loaders, windows
from segline.data.cases import Case
from segline.data.loaders import make_loader
from segline.data.scan import scan
from segline.data.synthetic.biomedical import write_biomedical
from segline.data.windows import EqualSampler, Reader, TileWindows, TrainWindows, WindowSampler
from segline.io import masks as mask_files
from segline.io.normalize import Normalize
from segline.io.open import open_image, open_mask
from segline.io.source import MaskSource, Source
from segline.labels import IGNORE_INDEX, Labels
from segline.weight_map import BorderWeights

LABELS = Labels({"background": 0, "cell": 1, "rare": 2}, background="background", ignore=[9])


def reader(
    folder: Path, *masks: NDArray[np.uint8], labels: Labels = LABELS, objects: bool = False, instances: bool = False
) -> Reader:
    """Images whose two bands say where a pixel lies, with these masks; with `objects`, one file for each value of a mask."""
    cases = []
    for number, mask in enumerate(masks):
        rows, columns = np.indices(mask.shape).astype(np.uint8)
        image = folder / f"{number}.png"
        Image.fromarray(np.stack([rows, columns], -1), "LA").save(image)
        files = [folder / f"{number}_{value}.png" for value in (range(1, mask.max() + 1) if objects else [0])]
        for value, file in enumerate(files, 1):
            Image.fromarray((mask == value).astype(np.uint8) if objects else mask).save(file)
        cases.append(Case(str(number), str(number), (image,), tuple(files), objects=objects))

    def open_case(case: Case) -> tuple[Source, MaskSource]:
        image = open_image(case.images)
        return image, open_mask(case.masks, labels, like=image, objects=case.objects)

    facts = scan(cases, open_case, labels, None)
    normalize = Normalize("dataset", [0, 0], [1, 1])
    return Reader(cases, [facts[case.name] for case in cases], open_case, normalize, labels, instances)


def noise(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice([0, 1, 9], shape).astype(np.uint8)


def jitter(sample: dict[str, NDArray[np.float32]], rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Augmentation that draws numbers."""
    return {**sample, "image": sample["image"] + rng.normal(size=(2, 1, 1)).astype(np.float32)}


def batches(loader: DataLoader[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return list(loader)


def assert_same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other)
    assert all(
        torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in ("image", "mask", "case")
    )


@pytest.fixture
def training(tmp_path: Path) -> TrainWindows:
    return TrainWindows(reader(tmp_path, noise((40, 50)), noise((64, 33), 1)), [16, 24], 0.5, seed=3, augment=jitter)


def test_a_sample_is_of_the_contract_and_image_and_mask_lie_over_each_other(tmp_path: Path) -> None:
    mask = noise((40, 50))
    sample = TrainWindows(reader(tmp_path, mask), [16, 24], 0.0, 0, None)[0, 7]
    assert (sample["image"].dtype, tuple(sample["image"].shape)) == (torch.float32, (2, 16, 24))
    assert (sample["mask"].dtype, tuple(sample["mask"].shape)) == (torch.int64, (16, 24))
    rows, columns = sample["image"].long().numpy()
    np.testing.assert_array_equal(sample["mask"].numpy(), LABELS.encode(mask)[rows, columns])


def test_overlapping_labels_make_a_mask_for_each_class(tmp_path: Path) -> None:
    labels = Labels({"any": [1, 2], "rare": 2}, scheme="overlapping", ignore=[9])
    mask = np.random.default_rng(0).choice([0, 1, 2, 9], (40, 50)).astype(np.uint8)
    sample = TrainWindows(reader(tmp_path, mask, labels=labels), [16, 24], 0.5, 0, None)[0, 7]
    assert (sample["mask"].dtype, tuple(sample["mask"].shape)) == (torch.uint8, (2, 16, 24))
    rows, columns = sample["image"].long().numpy()
    np.testing.assert_array_equal(sample["mask"].numpy(), labels.encode(mask)[:, rows, columns])


def test_instances_move_with_the_mask_and_end_at_the_image(tmp_path: Path) -> None:
    objects = np.zeros((20, 20), np.uint8)
    objects[2:8, 2:8], objects[10:19, 5:15] = 1, 2
    labels = Labels({"background": 0, "cell": 1}, background="background")
    files = reader(tmp_path, objects, labels=labels, objects=True, instances=True)
    windows = TrainWindows(files, [32, 12], 0.0, 0, None)
    for number in range(5):
        sample = windows[0, number]
        inside = sample["mask"].numpy() != IGNORE_INDEX
        assert inside.sum() == 20 * 12
        rows, columns = sample["image"].long().numpy()
        np.testing.assert_array_equal(sample["instances"].numpy()[inside], objects[rows, columns][inside])
        assert not sample["instances"].numpy()[~inside].any()
        np.testing.assert_array_equal(sample["mask"].numpy()[inside], (objects > 0)[rows, columns][inside])


def test_weights_are_those_of_the_augmented_window_and_its_instances(tmp_path: Path) -> None:
    objects = np.zeros((20, 20), np.uint8)
    objects[2:8, 2:8], objects[8:19, 5:15] = 1, 2  # they touch
    labels = Labels({"background": 0, "cell": 1}, background="background")
    files = reader(tmp_path, objects, labels=labels, objects=True, instances=True)
    weigh = partial(BorderWeights(), labels=labels, class_weights=[0.5, 1.5])
    geometry = Augment({"warp": Warp(1.0, 30.0, (0.9, 1.1)), "turn": Turn()})
    for number in range(5):
        plain = TrainWindows(files, [24, 24], 0.0, 0, geometry)[0, number]
        sample = TrainWindows(files, [24, 24], 0.0, 0, geometry, weigh)[0, number]
        arrays = {name: plain[name].numpy() for name in ("mask", "instances")}
        assert torch.equal(plain["image"], sample["image"])
        assert (sample["weight"].dtype, sample["weight"].shape) == (torch.float32, sample["mask"].shape)
        np.testing.assert_array_equal(sample["weight"].numpy(), weigh(arrays))
        assert sample["weight"].max() > 5  # between the two, which are one component of the mask
        assert "weight" not in plain


def test_instances_are_read_only_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.eye(20, dtype=np.uint8)
    files = reader(tmp_path, mask, labels=Labels({"background": 0, "cell": 1}), objects=True)
    monkeypatch.setattr(mask_files.ObjectsMask, "instances", None)  # nothing that could be called
    assert TrainWindows(files, [16, 16], 0.0, 0, None)[0, 0].keys() == {"image", "mask", "case"}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than this machine has cores
def test_samples_do_not_depend_on_workers(training: TrainWindows) -> None:
    seen = []
    for workers in (0, 1, 4):
        sampler = WindowSampler(num_batches=3, batch_size=2)
        loader = make_loader(training, sampler, 2, workers)
        epochs = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            epochs += batches(loader)
        seen.append(epochs)
        del loader
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])
    assert not torch.equal(seen[0][0]["image"], seen[0][3]["image"])  # another epoch, other windows


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (16, 4, 3), (4, 8, 0), (256, 2, 16)])
def test_processes_share_the_cores_for_loading(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loaders.spare_cores() == workers


@pytest.mark.slow
def test_a_script_ends_though_its_loader_is_alive(tmp_path: Path) -> None:
    script = """if True:
        from segline.config import build, compose
        data = build(compose(["data=biomedical", "data.num_workers=2", f"data.root={ROOT}"]).data)
        data.prepare()
        batches = iter(data.train_dataloader())
        next(batches)
    """.replace("{ROOT}", str(write_biomedical(tmp_path / "scenes", count=10)))
    command, checkout = [sys.executable, "-c", script], Path(windows.__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=checkout)
    assert ended.returncode == 0, ended.stderr


def test_files_are_kept_open_as_far_as_a_process_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = []
    for number in range(12):
        files = [tmp_path / f"{number}_{part}.tif" for part in ("red", "green", "mask")]
        profile = {"width": 8, "height": 8, "count": 1, "dtype": "uint8", "transform": Affine.scale(2)}
        for file in files:
            with rasterio.open(file, "w", **profile) as raster:
                raster.write(np.full((1, 8, 8), number if "mask" not in file.name else 1, np.uint8))
        scenes.append(Case(str(number), str(number), tuple(files[:2]), (files[2],)))
    opened: list[str] = []

    def open_case(case: Case) -> tuple[Source, MaskSource]:
        opened.append(case.name)
        image = open_image(case.images)
        return image, open_mask(case.masks, LABELS, like=image)

    facts = scan(scenes, open_case, LABELS, None)
    opened.clear()
    monkeypatch.setattr(windows, "most_files", lambda: 10)
    many = Reader(scenes, [facts[s.name] for s in scenes], open_case, Normalize("dataset", [0, 0], [1, 1]), LABELS)
    before = len(os.listdir("/dev/fd"))
    for index in [*range(12), 9, 0, 9]:
        assert (many.read(index, (slice(0, 8), slice(0, 8)))["image"] == index).all()
        assert len(os.listdir("/dev/fd")) - before <= 10
    assert opened == [*map(str, range(12)), "0"]


def test_a_resume_goes_on_with_the_batches_that_would_have_come(training: TrainWindows) -> None:
    whole = WindowSampler(num_batches=4, batch_size=2)
    expected = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        expected += batches(make_loader(training, whole, 2, 0))
    resumed = WindowSampler(num_batches=4, batch_size=2)
    resumed.go_on(epoch=1, batches=3)
    found = batches(make_loader(training, resumed, 2, 0))
    resumed.set_epoch(2)
    found += batches(make_loader(training, resumed, 2, 0))
    assert_same(found, expected[4 + 3 :])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_one_order_of_windows(processes: int) -> None:
    alone = WindowSampler(num_batches=4, batch_size=6)
    parts = [iter(WindowSampler(4, 6 // processes, rank, processes)) for rank in range(processes)]
    alone.set_epoch(0)
    together = []
    for _ in range(4):  # a step: each process's part of the global batch
        for part in parts:
            together += [next(part) for _ in range(6 // processes)]
    assert together == list(alone)
    assert all(next(part, None) is None for part in parts)


def test_the_share_of_windows_over_a_class_is_as_asked(tmp_path: Path) -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[100, 100] = 1  # a chance window holds it in 1 of 100
    for share, least, most in ((0.0, 0, 12), (0.4, 75, 130), (1.0, 250, 250)):
        windows = TrainWindows(reader(tmp_path, mask), [32, 32], share, 0, None)
        hits = sum(bool((windows[0, number]["mask"] == 1).any()) for number in range(250))
        assert least <= hits <= most, (share, hits)


def test_windows_over_a_class_hold_it_and_classes_are_drawn_evenly(tmp_path: Path) -> None:
    mask = np.zeros((150, 150), np.uint8)
    mask[:70] = 1
    mask[149, 149] = mask[90, 33] = 2  # a ten-thousandth
    windows = TrainWindows(reader(tmp_path, mask), [32, 32], 1.0, 0, None)
    masks = [windows[0, number]["mask"] for number in range(300)]
    assert all(bool(((m == 1) | (m == 2)).any()) for m in masks)
    assert 120 <= sum(bool((m == 2).any()) for m in masks) <= 180


def test_a_case_without_a_class_gives_windows_from_anywhere(tmp_path: Path) -> None:
    windows = TrainWindows(reader(tmp_path, np.zeros((64, 64), np.uint8)), [16, 16], 1.0, 0, None)
    starts = {tuple(windows[0, number]["image"][:, 0, 0].tolist()) for number in range(60)}
    assert len(starts) > 40


def test_windows_reach_every_pixel_and_stay_within(tmp_path: Path) -> None:
    windows = TrainWindows(reader(tmp_path, noise((20, 23))), [16, 16], 0.0, 0, None)
    hits = Counter[tuple[int, int]]()
    for number in range(200):
        image = windows[0, number]["image"]
        assert not (windows[0, number]["mask"] == IGNORE_INDEX).all()
        hits.update(zip(*(band.flatten().int().tolist() for band in image), strict=True))
    assert len(hits) == 20 * 23


def test_larger_cases_give_more_windows_by_the_root_of_their_size(tmp_path: Path) -> None:
    windows = TrainWindows(reader(tmp_path, noise((20, 20)), noise((80, 80), 1)), [16, 16], 0.0, 0, None)
    counts = Counter(int(windows[0, number]["case"]) for number in range(500))
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_an_image_smaller_than_the_window_is_padded_with_ignored_pixels(tmp_path: Path, foreground: float) -> None:
    mask = np.ones((10, 12), np.uint8)
    sample = TrainWindows(reader(tmp_path, mask), [16, 32], foreground, 0, None)[0, 0]
    counted = sample["mask"] != IGNORE_INDEX
    assert counted[3:13, 10:22].all()
    assert counted.sum() == mask.size
    assert (sample["image"][:, ~counted] == 0).all()  # the mean


@pytest.mark.parametrize("margin", [[0, 0], [4, 2]])
def test_tiles_count_each_pixel_once_and_as_the_file_says(tmp_path: Path, margin: list[int]) -> None:
    masks = noise((40, 50)), noise((7, 33), 1)
    tiles = TileWindows(reader(tmp_path, *masks), [16, 24], margin)
    found = [np.full(mask.shape, -1) for mask in masks]
    for number in range(len(tiles)):
        sample = tiles[number]
        counted = sample["mask"] != IGNORE_INDEX
        rows, columns = sample["image"].long()[:, counted]
        canvas = found[int(sample["case"])]
        assert (canvas[rows, columns] == -1).all()
        canvas[rows, columns] = sample["mask"][counted]
    for mask, canvas in zip(masks, found, strict=True):
        np.testing.assert_array_equal(canvas, np.where(mask == 9, -1, LABELS.encode(mask).astype(int)))


@pytest.mark.parametrize("samples", [0, 1, 7, 8])
def test_processes_cover_each_tile_once_in_equal_numbers(samples: int) -> None:
    assert list(EqualSampler(samples, 1)) == list(range(samples))
    for processes, batch_size in product((1, 2, 3), (1, 2, 4)):
        samplers = [EqualSampler(samples, batch_size, rank, processes) for rank in range(processes)]
        parts = [list(sampler) for sampler in samplers]
        assert len({len(part) for part in parts}) == 1
        assert [len(sampler) for sampler in samplers] == [len(part) for part in parts]
        assert sorted(n for part in parts for n in part if n >= 0) == list(range(samples))
        assert sum(n < 0 for part in parts for n in part) < 2 * processes
        assert batch_size == 1 or len(parts[0]) % batch_size != 1  # none is alone


def test_a_sample_that_fills_up_a_batch_counts_nothing(tmp_path: Path) -> None:
    tiles = TileWindows(reader(tmp_path, np.ones((16, 16), np.uint8)), [16, 16], [0, 0])
    assert (tiles[0]["mask"] == 1).all()
    assert (tiles[-1]["mask"] == IGNORE_INDEX).all()
    assert tiles[-1]["image"].shape == tiles[0]["image"].shape


def test_pixels_without_data_are_ignored_in_the_mask(tmp_path: Path) -> None:
    values = np.ones((2, 12, 12), np.float32)
    values[:, :3], values[0, 5] = np.nan, np.nan
    profile = {"driver": "GTiff", "height": 12, "width": 12, "count": 2, "dtype": "float32"}
    with rasterio.open(
        tmp_path / "i.tif", "w", crs="EPSG:32633", transform=Affine(2, 0, 0, 0, -2, 0), **profile
    ) as file:
        file.write(values)
    Image.fromarray(np.ones((12, 12), np.uint8)).save(tmp_path / "m.png")
    case = Case("a", "a", (tmp_path / "i.tif",), (tmp_path / "m.png",))

    def open_case(case: Case) -> tuple[Source, MaskSource]:
        image = open_image(case.images)
        return image, open_mask(case.masks, LABELS, like=image)

    facts = [scan([case], open_case, LABELS, None)["a"]]
    sample = Reader([case], facts, open_case, Normalize("dataset", [0, 0], [1, 1]), LABELS).read(
        0, (slice(0, 12), slice(0, 12))
    )
    assert (sample["mask"][:3] == IGNORE_INDEX).all()
    assert (sample["mask"][3:] == 1).all()  # one band still says something
    assert np.isfinite(sample["image"]).all()
