"""The domain of micrographs."""

from __future__ import annotations

from pathlib import Path

from segline.data.datamodule import SegmentationDataModule


class BiomedicalDataModule(SegmentationDataModule):
    """Micrographs and their masks; without a root, synthetic ones."""

    outdoors = False

    def synthesise(self, root: Path) -> None:
        """Write the synthetic scenes, once."""
        from segline.data.synthetic.biomedical import write_biomedical

        write_biomedical(root)
