"""The domain of rasters with a coordinate system."""

from __future__ import annotations

from pathlib import Path

from segline.data.datamodule import SegmentationDataModule


class SatelliteDataModule(SegmentationDataModule):
    """Rasters with a coordinate system and their masks; without a root, synthetic ones."""

    def synthesise(self, root: Path) -> None:
        """Write the synthetic scenes, once."""
        from segline.data.synthetic.satellite import write_satellite

        write_satellite(root)
