import dataclasses
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from segline.card import Card
from segline.checkpoints import BEST, read, read_network, write
from segline.commit import remove_leftovers, temporary_path

CARD = Card(
    {"_target_": "segline.models.unet.UNet"},
    {"classes": {"a": 0, "b": 1}},
    {"scope": "case"},
    None,
    None,
    [32, 32],
    [8, 8],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write({"state_dict": {"network.w": torch.arange(3.0)}, "card": CARD.to_dict()}, tmp_path / BEST)
    card, weights = read_network(tmp_path)
    assert card == CARD
    assert weights["w"].tolist() == [0, 1, 2]


def test_a_failed_write_keeps_the_old_checkpoint_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resume.ckpt"
    write({"step": 1}, path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"resume\.ckpt could not be written .*No space left.*MB are free"):
        write({"step": 2}, path)
    assert read(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["resume.ckpt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": "large"}, r"the card's window is 'large'; expected a list"),
        ({"window": [0, 32]}, "2 or 3 sizes in pixels"),
        ({"window": [True, 32]}, "2 or 3 sizes in pixels"),
        ({"window": [10**9, 10**9]}, "2 or 3 sizes in pixels"),
        ({"network": {}}, "names no network"),
        ({"network": {"_target_": 3}}, "names no network: its _target_ is 3"),
        ({"margin": [8]}, r"margin is \[8\], of other axes"),
        ({"margin": [16, 16]}, "leaves nothing of its window"),
        ({"bands": "all"}, "expected a list of numbers from 1 on, or null"),
        ({"bands": [0]}, "expected a list of numbers from 1 on, or null"),
        ({"spacing_mm": [1.0, 1.0]}, "expected 3 lengths for volumes"),
        ({"trained_on": None}, "trained_on is None; expected a str"),
        ({"labels": {"names": ["a"]}}, r"labels cannot be read .*'names'"),
        ({"labels": {"classes": "ab"}}, "labels cannot be read"),
        ({"network": {"_target_": "x.Y", "num_classes": 3}}, "network has 3 classes, but its labels 2"),
        ({"normalize": {"scope": "world"}}, "expected one of dataset, case"),
        ({"normalize": {"scope": "dataset"}}, "mean None and std None; expected a number a band"),
        ({"normalize": {"scope": "dataset", "mean": [1.0], "std": [0.0]}}, "no std of 0"),
        ({"normalize": {"scope": "dataset", "mean": [float("nan")], "std": [1.0]}}, "expected a number a band"),
        (
            {
                "network": {"_target_": "x.Y", "in_channels": 3},
                "normalize": {"scope": "dataset", "mean": [1.0], "std": [1.0]},
            },
            "takes 3 bands, but its normalize has 1",
        ),
        (
            {"network": {"_target_": "x.Y", "in_channels": 3}, "bands": [1, 2]},
            r"takes 3 bands, but its bands are \[1, 2\]",
        ),
        (
            {"network": {"_target_": "segline.models.unet.UNet", "in_channels": "3"}},
            "takes '3' bands; expected a number",
        ),
        ({"labels": None}, r"the card's labels is None; expected a dict"),
        ({"stride": 0}, r"the card's stride is 0; expected a number of pixels"),
    ],
)
def test_a_damaged_card_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    write({"state_dict": {"network.w": torch.zeros(1)}, "card": {**CARD.to_dict(), **change}}, tmp_path / BEST)
    with pytest.raises(ValueError, match=rf"best\.ckpt: .*{said}"):
        read_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"network": {"in_channels": 3}}, 3),
        # Of a network of the user's the argument may mean something else.
        ({"network": {"in_channels": [3, 64]}, "bands": [2, 4]}, 2),
        ({"network": {}, "normalize": {"scope": "dataset", "mean": [1.0], "std": [1.0]}}, 1),
        ({"network": {}, "normalize": {"scope": "case"}}, None),
    ],
)
def test_the_number_of_bands_is_what_the_card_says_of_them(change: dict[str, Any], expected: int | None) -> None:
    assert dataclasses.replace(CARD, **change).num_bands == expected


def test_a_card_of_before_the_stride_is_read(tmp_path: Path) -> None:
    older = {name: value for name, value in CARD.to_dict().items() if name != "stride"}
    write({"state_dict": {"network.w": torch.zeros(1)}, "card": older}, tmp_path / BEST)
    assert read_network(tmp_path)[0] == CARD


@pytest.mark.parametrize("content", [{}, {"state_dict": None}, {"state_dict": {"w": torch.zeros(1)}}])
def test_a_card_without_weights_is_no_network(tmp_path: Path, content: dict[str, object]) -> None:
    write({"card": CARD.to_dict(), **content}, tmp_path / BEST)
    with pytest.raises(ValueError, match=r"best\.ckpt holds no weights of a network"):
        read_network(tmp_path)


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    names = (".lock", "resume.ckpt", temporary_path(tmp_path / "resume.ckpt").name, temporary_path(tmp_path / "x").name)
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)  # they may be another process's that is at work
    assert len(os.listdir(tmp_path)) == 4
    remove_leftovers(tmp_path, older_than=-1)
    assert sorted(os.listdir(tmp_path)) == [".lock", "resume.ckpt"]


def test_every_flipped_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write({"w": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.file_size == 256)
    start = whole.index(torch.arange(64.0).numpy().tobytes(), info.header_offset)
    for place in range(start, start + 256, 17):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            read(path)


def test_no_byte_of_a_checkpoint_can_break_the_program(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write({"card": CARD.to_dict(), "state_dict": {"network.w": torch.arange(4.0)}}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        # Some bytes nobody asks for, such as the time of the archive's parts.
        with suppress(ValueError):
            card, weights = read_network(path)
            assert card == CARD
            assert weights["w"].tolist() == [0, 1, 2, 3]


def test_a_small_checkpoint_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**22))
    with pytest.raises(ValueError, match="claims more bytes than it has"):
        read(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.ckpt"
    write({"w": torch.arange(64.0)}, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="truncated"):
        read(path)


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["CANARY"],)


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(ValueError, match=r"x\.ckpt holds more than tensors and plain data, such as posix\.mkdir, and"):
        read(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="not a checkpoint"):
        read(path)
    assert not canary.exists()


def test_what_is_no_segline_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        read_network(tmp_path)
    write({"state_dict": {}}, tmp_path / BEST)
    with pytest.raises(ValueError, match="no segline card"):
        read_network(tmp_path)
    write({"state_dict": {}, "card": CARD.to_dict() | {"version": 99}}, tmp_path / BEST)
    with pytest.raises(ValueError, match="version 99"):
        read_network(tmp_path)
