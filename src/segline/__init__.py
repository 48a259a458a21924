"""segline: semantic segmentation of cells, organs, satellite scenes and streets."""

__version__ = "0.1.0"
