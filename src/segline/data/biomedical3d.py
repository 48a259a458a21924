"""The domain of volumes."""

from __future__ import annotations

from pathlib import Path

from segline.data.datamodule import SegmentationDataModule


class Biomedical3DDataModule(SegmentationDataModule):
    """Volumes and their masks; without a root, synthetic ones."""

    outdoors = False

    def synthesise(self, root: Path) -> None:
        """Write the synthetic scenes, once."""
        from segline.data.synthetic.biomedical3d import write_biomedical3d

        write_biomedical3d(root)
