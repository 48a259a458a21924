"""A training of two processes as one writes it with Hydra and Lightning alone."""

import hydra
import pytorch_lightning as pl
import torch
from disturbances import NotesRates
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.demos.boring_classes import BoringModel


class Model(BoringModel):
    """A layer, and the learning rate that is searched."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


@hydra.main(version_base="1.3", config_path=None)
def train(config: DictConfig) -> float:
    """Two steps."""
    folder = HydraConfig.get().runtime.output_dir
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, limit_val_batches=0, logger=False, default_root_dir=folder,
        callbacks=[NotesRates()], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Model(config.lr))
    return config.lr


if __name__ == "__main__":
    train()
