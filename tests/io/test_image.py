import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segline.io.image import ImageSource
from segline.io.source import whole

RNG = np.random.default_rng(0)


def write_png(path: Path, pixels: np.ndarray, color: int, depth: int = 8) -> Path:
    """A PNG by the letter of its specification: an oracle that shares nothing with the reader."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = pixels.astype(f">u{depth // 8}")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def read(path: Path) -> np.ndarray:
    source = ImageSource(path)
    return source.read(whole(source.shape))


@pytest.mark.parametrize(
    ("color", "depth", "bands"), [(0, 8, 1), (0, 16, 1), (4, 8, 2), (2, 8, 3), (2, 16, 3), (6, 8, 4), (6, 16, 4)]
)
def test_every_bit_of_a_png_arrives(tmp_path: Path, color: int, depth: int, bands: int) -> None:
    pixels = RNG.integers(0, 2**depth, (5, 7, bands))
    source = ImageSource(write_png(tmp_path / "a.png", pixels, color, depth))
    assert (source.shape, source.num_bands) == ((5, 7), bands)
    image = source.read(whole(source.shape))
    assert image.dtype == np.float32
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


def test_a_window_is_that_part_of_the_picture(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (9, 11, 3))
    source = ImageSource(write_png(tmp_path / "a.png", pixels, 2))
    assert np.array_equal(source.read((slice(2, 5), slice(4, 11))), pixels[2:5, 4:11].transpose(2, 0, 1))


def test_what_a_caller_does_to_a_window_does_not_change_the_next(tmp_path: Path) -> None:
    source = ImageSource(write_png(tmp_path / "a.png", RNG.integers(0, 256, (4, 4, 1)), 0))
    first = source.read(whole(source.shape))
    kept = first.copy()
    first += 1
    assert np.array_equal(source.read(whole(source.shape)), kept)


def test_a_picture_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for value in (1, 2):
        write_png(path, np.full((2, 2, 1), value), 0)
        assert (read(path) == value).all()


def test_a_palette_picture_is_read_in_its_colors(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    picture.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    picture.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[:, 0].T.tolist() == [[9, 8, 7], [6, 5, 4]]


def test_a_one_bit_picture_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == [[[255, 0]]]


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_jpegs_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (6, 4), 0 if mode == "L" else (0,) * len(mode)).save(tmp_path / "a.JPG", format="JPEG")
    image = read(tmp_path / "a.JPG")
    assert image.shape == (1 if mode == "L" else 3, 4, 6)
    assert image.std() < 2


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture has to be turned by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png")[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "color.jpg"])
def test_a_truncated_picture_is_refused_wherever_it_was_cut(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name == "color.jpg":
        Image.fromarray(RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)
    else:
        write_png(path, RNG.integers(0, 256, (8, 8, 3)), 2, 16 if name == "deep.png" else 8)
    data = path.read_bytes()
    end = len(data) - (24 if name.endswith(".png") else 2)  # checksums and the closing mark hold no pixels
    for length in range(0, end, 7):
        cut = tmp_path / f"{length}_{name}"
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=rf"{length}_{name} is not a whole PNG or JPEG.*copy it again"):
            ImageSource(cut)
    assert capfd.readouterr().err == ""


def test_other_formats_under_a_png_name_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(ValueError, match="not a whole PNG or JPEG"):
        ImageSource(tmp_path / "a.png")


def test_a_picture_that_claims_a_gigantic_size_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.zeros((2, 2, 1)), 0)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"too large.*tiled TIFF"):
        ImageSource(path)
