"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

from pathlib import Path

#: First bytes of a file -> what it is, and the ending that it should have.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG picture", ".png"),
    (b"\xff\xd8\xff", "JPEG picture", ".jpg"),
    (b"II*\0", "TIFF", ".tif"),
    (b"MM\0*", "TIFF", ".tif"),
    (b"II+\0", "TIFF", ".tif"),
    (b"MM\0+", "TIFF", ".tif"),
    (b"\x1f\x8b", "gzip file", ".nii.gz"),
)
#: Where a NIfTI header of version 1 or 2 says what it is.
_NIFTI = ((344, (b"n+1\0", b"ni1\0")), (4, (b"n+2\0", b"ni2\0")))
#: Endings that one reader takes.
_SAME = ((".png", ".jpg", ".jpeg"), (".tif", ".tiff"))


def check_content(path: Path) -> None:
    """Refuse a file that is empty, or of another kind than its name says, by what it is.

    A file of no known kind passes: its reader says what is wrong with it.

    Raises:
        ValueError: The file is empty, of another format, or a text that refers to other files.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes); export or copy it again")
    if b"<VRTDataset" in start:
        raise ValueError(
            f"{path} is a virtual raster (VRT), which refers to other files, and is not opened; "
            f"write its pixels into a file: gdal_translate -of GTiff {path.name} {path.stem}_pixels.tif"
        )
    what, ending = _kind(start)
    if ending and not path.name.lower().endswith(_endings(ending)):
        raise ValueError(f"{path} is a {what} by its content, not what its name says; rename it to end in {ending}")


def _kind(start: bytes) -> tuple[str, str]:
    """What begins so, and its ending; empty where nothing known does."""
    for signature, what, ending in _SIGNATURES:
        if start.startswith(signature):
            return what, ending
    if any(start[place : place + 4] in magic for place, magic in _NIFTI):
        return "NIfTI volume", ".nii"
    return "", ""


def _endings(ending: str) -> tuple[str, ...]:
    return next((same for same in _SAME if ending in same), (ending,))
