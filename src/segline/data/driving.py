"""The domain of frames of street scenes."""

from __future__ import annotations

from pathlib import Path

from segline.data.datamodule import SegmentationDataModule


class DrivingDataModule(SegmentationDataModule):
    """Frames of street scenes and their masks; without a root, synthetic ones."""

    def synthesise(self, root: Path) -> None:
        """Write the synthetic scenes, once."""
        from segline.data.synthetic.driving import write_driving

        write_driving(root)
