"""One LightningDataModule a domain over shared cases, splits, scan and windows."""
