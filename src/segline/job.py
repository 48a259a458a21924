"""One training job from one resolved config. `python -m segline.job RUN/ITS_CONFIG.yaml` is what torch's launcher starts."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from segline import report
from segline.averaging import WeightAverage
from segline.budget import Budget, LearningRate, Objective, Patience, read_budget
from segline.callbacks import Checkpoints, EpochTable, Progress, SameConfig, WholeCheckpointIO
from segline.card import Card
from segline.checkpoints import BEST, RESUME, check_fits, read_network, read_resumed
from segline.commit import committed, remove_leftovers
from segline.config import CONFIG, LOCK, build
from segline.data.datamodule import SegmentationDataModule
from segline.locks import locked
from segline.machine import forget_peak, keep_freed
from segline.module import SegmentationModule
from segline.precision import fast_precision, full_name, memory_format
from segline.sweep.gpus import GPU

#: How long the run folder is tried to be held: a sweep may just be asking whether it is.
_SECONDS_TO_LOCK = 0.25


def run(path: Path) -> None:
    """Train as a resolved config says, in the folder that it lies in, then test the best weights.

    The config becomes RUN/config.yaml once it is clear that this folder is free, or that the run goes on in it.

    Raises:
        ValueError: The config, the data and the checkpoint don't fit each other, or the run folder is in use.
    """
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    run_dir, rank = path.parent, int(os.environ.get("RANK", "0"))
    _silence()
    keep_freed()
    with _locked(run_dir) if rank == 0 else nullcontext():
        budget, precision = read_budget(config.trainer), _hardware(config.trainer)["precision"]
        resume = read_resumed(run_dir, config.resume)
        pl.seed_everything(config.seed, verbose=False)
        data = build(config.data)
        data.prepare()
        if not data.cases["val"]:
            raise ValueError(
                "the validation part is empty, which picks the best weights; set data.val to a share such as 0.2"
            )
        module = _build_module(config, data)
        torch.manual_seed(config.seed + rank)  # equal weights, but no equal dropout on all processes
        network: Any = OmegaConf.to_container(config.model)
        _check_objective(config.objective, module)
        card = Card(network=network, precision=precision, trained_on=config.run.choices.data, **data.card_fields())
        if resume is not None:
            check_fits(resume, card)
            data.go_on(**{key: resume["training"][key] for key in ("epoch", "batches")})
        if rank == 0:  # from here on the folder is this run's
            with committed(run_dir / CONFIG) as temporary:
                OmegaConf.save(config, temporary)
        callbacks = _build_callbacks(config, run_dir, budget, card)
        with _loggers(config, run_dir) as loggers:
            trainer = _build_trainer(config, run_dir, budget, callbacks, loggers)
            if trainer.is_global_zero:
                report.announce(config, run_dir, data, module, trainer, budget)
                if resume is not None:
                    print(f"resume    after step {resume['global_step']}", flush=True)
                _forget_peaks(trainer.strategy.root_device)
            trainer.fit(module, data, ckpt_path=run_dir / RESUME if resume else None, weights_only=True)
            if trainer.is_global_zero:
                report.write_costs(run_dir, module, trainer, budget, resumed=resume is not None)
            if not any(getattr(callback, "pruned", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
                _finish(config, run_dir, trainer, module, data)
            if torch.distributed.is_initialized():
                # All leave together: a process that ends while its peers still talk to it is aborted by gloo's threads.
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()


def _forget_peaks(device: torch.device) -> None:
    """Let the memory of this training be told from that of one before it in this process."""
    forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _finish(
    config: DictConfig, run_dir: Path, trainer: pl.Trainer, module: SegmentationModule, data: SegmentationDataModule
) -> None:
    """Evaluate the best weights on the validation part, and on the test part where there is one, and leave the report."""
    checkpoints = next(c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints))
    if checkpoints.best is None:
        trainer.validate(module, datamodule=data, verbose=False)  # the budget ended before the first validation
        trainer.strategy.barrier()
    _, weights = read_network(run_dir / BEST)
    module.network.load_state_dict(weights)
    results = {}
    for split, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        if data.cases[split]:
            evaluate(module, datamodule=data, verbose=False)
            results[split] = report.result(split, module, data)
    if trainer.is_global_zero:
        module.to(trainer.strategy.root_device)  # where Lightning's evaluation has taken it from
        left = report.write(config, run_dir, results, module, data)
        for logger in trainer.loggers:
            if hasattr(logger, "log_report"):  # ours; Lightning's own take numbers only
                logger.log_report(left, data.labels)
        report.finish(run_dir, left.scores)
        print(f"run: {run_dir}", flush=True)


def _build_module(config: DictConfig, data: SegmentationDataModule) -> SegmentationModule:
    loss = build(config.loss, **({"class_weights": data.class_weights()} if config.class_weights else {}))
    if data.labels.scheme not in loss.schemes:
        raise ValueError(
            f"loss={config.run.choices.loss} takes {' or '.join(sorted(loss.schemes))} labels, but data={config.run.choices.data} "
            f"has {data.labels.scheme} ones; set loss=dice_ce, which takes both"
        )
    parts = [part for part in loss.modules() if data.weight_map is not None]
    if data.labels.exclusive and any(getattr(part, "class_weights", None) is not None for part in parts):
        raise ValueError(
            "data.weight_map balances the classes already, and class_weights would once more; set class_weights=false and "
            "loss.class_weights=null, or data/weight_map=null"
        )
    if not all(getattr(part, "weighs_pixels", True) for part in parts):
        raise ValueError(
            f"loss={config.run.choices.loss} takes no weights of pixels; set loss=dice_ce, or data/weight_map=null"
        )
    network: nn.Module = build(config.model)
    channels_last = config.trainer.channels_last
    if channels_last:
        network = network.to(memory_format=memory_format(2 + config.data.spatial_dims))
    return SegmentationModule(
        network,
        loss,
        data.labels,
        cases={split: [case.name for case in cases] for split, cases in data.cases.items()},
        optimizer=_build_optimizer(config),
        **build(config.metrics),
        channels_last=channels_last,
    )


def _build_optimizer(config: DictConfig) -> Any:
    """The optimizer, with a rate in proportion to the windows a step where that is asked for (Goyal et al. 2017)."""
    if config.lr_batch_size is None:
        return build(config.optimizer)
    windows = config.data.batch_size * config.trainer.accumulate_grad_batches
    return build(config.optimizer, lr=config.optimizer.lr * windows / config.lr_batch_size)


def _check_objective(objective: str, module: SegmentationModule) -> None:
    names = [f"val/{name}" for name in module.meters("val").names]
    if objective not in names:
        means = ", ".join(name for name in names if name.count("/") == 1)
        raise ValueError(
            f"objective is {objective!r}, which is not measured; set it to one of {means}, or that of one class: val/iou/CLASS"
        )


def _build_callbacks(config: DictConfig, run_dir: Path, budget: Budget, card: Card) -> list[Callback]:
    objective, stopping = Objective(config.objective), config.callbacks.early_stopping
    return [
        SameConfig(hashlib.sha256(OmegaConf.to_yaml(config).encode()).hexdigest()),
        budget,
        LearningRate(build(config.scheduler), budget, objective),
        Progress(objective, budget),
        *([Patience(objective, **stopping)] if stopping else []),
        *_pruning(config, run_dir, objective),
        *([WeightAverage(decay)] if (decay := config.callbacks.average_weights) is not None else []),
        EpochTable(run_dir / "metrics.csv", budget),
        Checkpoints(run_dir, card, objective, config.callbacks.checkpoint_minutes),
        *(callback for callback in build(config.callbacks.further).values() if callback),
    ]


def _pruning(config: DictConfig, run_dir: Path, objective: Objective) -> list[Callback]:
    """What ends a trial of a search early, where this run is one."""
    if config.trial is None:
        return []
    from segline.sweep.pruning import Pruning

    return [Pruning(run_dir, config.trial, objective)]


def _build_trainer(
    config: DictConfig, run_dir: Path, budget: Budget, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    ours = ("channels_last", "max_epochs", "max_steps", "max_time")
    settings = {str(key): value for key, value in config.trainer.items() if key not in ours}
    return pl.Trainer(
        **(settings | _hardware(config.trainer)),
        max_epochs=-1 if budget.max_steps or budget.max_time else budget.max_epochs,
        callbacks=callbacks,
        # Lightning would take a job of a cluster for one process of several that the cluster starts, and requeue it by itself.
        plugins=[WholeCheckpointIO(), TorchElasticEnvironment() if "RANK" in os.environ else LightningEnvironment()],
        logger=loggers or False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # ours pads with samples that count nothing
        enable_model_summary=False,
        benchmark=True,
        default_root_dir=run_dir,
    )


@contextmanager
def _loggers(config: DictConfig, run_dir: Path) -> Iterator[list[Logger]]:
    """Lightning's loggers as they are configured, closed in the end; a `_partial_` one gets the run's config and folder, too."""
    made: list[Any] = []
    failed = True
    try:
        for node in config.logger.values():
            if node is not None:
                own = {"save_dir": str(run_dir)} if "save_dir" in node and node.save_dir is None else {}
                logger = build(node, **own)
                made.append(logger(config=config, run_dir=run_dir) if isinstance(logger, partial) else logger)
        for logger in made:
            if not hasattr(logger, "log_report"):  # Lightning's own
                logger.log_hyperparams(OmegaConf.to_container(config))
        yield made
        failed = False
    finally:
        for logger in made:
            if hasattr(logger, "finish"):
                logger.finish(failed)


def _hardware(settings: DictConfig) -> dict[str, Any]:
    """What runs where, with each `auto` decided."""
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    accelerator, precision = settings.accelerator, str(settings.precision)
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator is {accelerator}, but torch {torch.__version__} sees no GPU here; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or set trainer=cpu"
        )
    return {
        "accelerator": accelerator,
        "devices": [int(os.environ[GPU])] if processes == 1 and GPU in os.environ else here,
        "num_nodes": processes // here,
        "strategy": "ddp" if processes > 1 else "auto",
        "precision": fast_precision(accelerator) if precision == "auto" else full_name(precision),
    }


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder; the lock goes with the process, however that ends."""
    with locked(run_dir / LOCK, seconds=_SECONDS_TO_LOCK) as mine:
        if not mine:
            raise ValueError(f"{run_dir} is in use by another process; wait for it, or set another hydra.run.dir")
        remove_leftovers(run_dir)
        yield


def _silence() -> None:
    """Keep the console for what a user can act on."""
    import logging

    for name in ("pytorch_lightning", "lightning.pytorch", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings(
        "ignore", message=".*`srun` command is available.*"
    )  # who starts processes is not Lightning's to guess


if __name__ == "__main__":
    from segline.refusals import explained

    with explained("train", sys.argv[1:]):
        run(Path(sys.argv[1]))
