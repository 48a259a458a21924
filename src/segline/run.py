"""The commands: what Hydra starts. Heavy imports happen inside, so that `--help` and a misspelt key answer at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from segline.commit import temporary_path
from segline.config import CONF_DIR, CONFIG, LOCK, as_list, networks, offer_own_data, with_own_data
from segline.processes import LAUNCHED, launch
from segline.refusals import Stopped
from segline.secrets import refuse_secrets

__all__ = ["compare_models", "evaluate", "explain", "export", "offer_own_data", "predict", "robustness", "train"]

#: Keys of the configs of predict and eval that say how trained networks are asked.
ASKED = (
    "checkpoint", "trust", "window", "overlap", "blend", "batch_size", "tta", "dropout_passes", "calibrated", "also", "cog",
)  # fmt: skip
#: `trainer.accelerator` of what may run on a GPU.
_MAY_BE_GPU = ("auto", "gpu", "cuda")
#: What a command does with its config; a number is for sweepers.
_Task = Callable[[DictConfig], float | None]
#: Overrides by which a user chooses where a run lies.
_FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir=")


def _command(config_name: str) -> Callable[[_Task], Callable[[], None]]:
    """A function of a config as what Hydra starts with the config of this name."""

    def wrap(task: _Task) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)
        @wraps(task)
        def run(config: DictConfig) -> float | None:
            try:
                return task(config)
            except Exception as error:
                if HydraConfig.get().mode is RunMode.MULTIRUN:  # sweeper and launcher must hear of it
                    raise
                raise Stopped from error

        return run

    return wrap


@_command("train")
def train(config: DictConfig) -> float | None:
    """Train, then test the best checkpoint; the value of the objective, for sweepers."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode is RunMode.MULTIRUN:
        from segline.sweep.points import once

        once(run_dir, partial(_train, config, run_dir, sweep=True))
    else:
        _train(config, run_dir)
    from segline.tables import SCORES, read_json

    return read_json(run_dir / SCORES).get(config.objective)  # nothing of one that was pruned, or is at work elsewhere


def _train(config: DictConfig, run_dir: Path, sweep: bool = False) -> None:
    """Resolve the config, and train in as many processes as it asks for."""
    hydra_config = HydraConfig.get()
    chosen_folder = any(override.startswith(_FOLDERS) for override in as_list(hydra_config.overrides.hydra))
    if LAUNCHED in os.environ and not chosen_folder:
        raise ValueError(
            "several processes need one folder: set hydra.run.dir=runs/NAME, and resume=auto to go on there"
        )
    settings = _plain(config)  # before what was typed is read, for of a wrong reference this knows the setting
    choices = hydra_config.runtime.choices
    chosen = {group: choice for group, choice in choices.items() if not group.startswith("hydra/") and "@" not in group}
    own = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    started = {"overrides": list(hydra_config.overrides.task), "config_dir": own[0] if own else None}
    # Under a name of its own: the folder's config is another run's until the job holds the folder.
    path = temporary_path(run_dir / CONFIG)
    try:
        _refuse_secrets(settings, run_dir)
        resolved = _resolve(
            config,
            {"name": run_dir.name, "choices": chosen, "sweep": run_dir.parent.name if sweep else None, **started},
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(resolved, path)
        processes = _num_processes(resolved.trainer, sweep and _runs_beside(hydra_config.launcher))
        with _own_gpus(resolved.trainer, processes, sweep):
            _start(path, processes, sweep)
    finally:
        path.unlink(missing_ok=True)
        if not chosen_folder:
            _remove_if_unused(run_dir)


def _runs_beside(launcher: DictConfig) -> bool:
    """Whether a launcher trains several jobs of a sweep at once that all see the same GPUs."""
    at_once = launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher"))
    return at_once and launcher.get("n_jobs", -1) not in (1, None)


def _own_gpus(trainer: DictConfig, processes: int, sweep: bool) -> AbstractContextManager[None]:
    """A GPU a process for this job alone, where jobs of a sweep may run side by side."""
    if not sweep or trainer.accelerator not in _MAY_BE_GPU:
        return nullcontext()
    from segline.sweep.gpus import own_gpus

    return own_gpus(processes)


def _remove_if_unused(run_dir: Path) -> None:
    """Leave no folder, by a name that nobody chose, of a run that was refused before it began."""
    with suppress(OSError):
        if {file.name for file in run_dir.iterdir()} <= {LOCK}:
            (run_dir / LOCK).unlink(missing_ok=True)
            run_dir.rmdir()


def _start(path: Path, processes: int, sweep: bool) -> None:
    """Run the job in this process, or in several of torch's launcher; of a sweep others shall follow one that fails."""
    if processes == 1 or LAUNCHED in os.environ:
        from segline import job

        job.run(path)
        return
    from segline.sweep.gpus import shown_to_processes

    code, asked = launch(path, processes, shown_to_processes())
    if code and sweep and not asked:
        raise ValueError(f"the training ended with code {code}; what went wrong is said above")
    if code:
        sys.exit(code)


@_command("predict")
def predict(config: DictConfig) -> None:
    """Write masks of whole files, in the format that came in."""
    _check_complete(config, "python src/predict.py checkpoint=RUN input=FILES output=FOLDER")
    from segline.inference.predict import predict_files
    from segline.inference.predictor import Settings

    predict_files(config.input, config.output, Settings(**_asked(config)), _num_processes(config.trainer))


@_command("eval")
def evaluate(config: DictConfig) -> float | None:
    """Measure a trained network on whole cases; the value of the objective, for sweepers."""
    _check_complete(config, "python src/eval.py checkpoint=RUN")
    config = with_own_data(config, "eval")
    from segline.inference.predictor import Settings
    from segline.scoring import score

    summary = score(config, HydraConfig.get().runtime.choices["data"], Settings(**_asked(config)))
    return summary["scores"].get("dice")


@_command("robustness")
def robustness(config: DictConfig) -> float | None:
    """Measure a trained network on corrupted and attacked cases; the mean over corruptions, for sweepers."""
    _check_complete(config, "python src/robustness.py checkpoint=RUN")
    config = with_own_data(config, "robustness")
    from segline.inference.predictor import Settings
    from segline.scoring import try_out

    return try_out(config, HydraConfig.get().runtime.choices["data"], Settings(**_asked(config)))["mean"]


def _asked(config: DictConfig) -> dict[str, Any]:
    """How a trained network is asked, by the names of `segline.inference.predictor.Settings`."""
    trainer, plain = config.trainer, _listed(_plain(config))
    asked = {name: plain[name] for name in ASKED if name in plain}
    return {**asked, "device": _device(trainer), "precision": _precision(trainer.precision)}


def _listed(plain: dict[str, Any]) -> dict[str, Any]:
    """Settings of several names as lists: also=gpkg is one name, not four letters."""
    return {**plain, **{name: as_list(plain[name]) for name in ("also", "tta", "trust") if name in plain}}


def _device(trainer: DictConfig) -> str:
    """Torch's name of the hardware that is asked for."""
    return str({"gpu": "cuda"}.get(trainer.accelerator, trainer.accelerator))


def _precision(asked: Any) -> str | None:
    """Lightning's name of the precision that is asked for; None for the network's own, for which torch is not needed."""
    if asked == "auto":
        return None
    from segline.precision import full_name

    return full_name(str(asked))


@_command("export")
def export(config: DictConfig) -> None:
    """Write a trained network as ONNX, checked against torch."""
    _check_complete(config, "python src/export.py checkpoint=RUN output=FILE")
    from segline.inference.export import export_network

    export_network(**_listed(_plain(config)))


@_command("models")
def compare_models(config: DictConfig) -> None:
    """Print what networks cost: weights, arithmetic, field of view, memory and time."""
    size, numbers = config.size, [config[name] for name in ("in_channels", "num_classes", "batch_size", "repeats")]
    if not OmegaConf.is_list(size) or len(size) not in (2, 3) or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"size is {size}; expected pixels along two axes, such as [256,256], or three of volumes")
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ValueError(f"in_channels, num_classes, batch_size and repeats are {numbers}; expected numbers from 1")
    asked = {"in_channels": config.in_channels, "num_classes": config.num_classes, "spatial_dims": len(config.size)}
    makers = networks(config.models, **asked)
    from segline.costs import Workload, print_costs
    from segline.inference.network import choose_device
    from segline.precision import fast_precision

    device = choose_device(_device(config.trainer))
    precision = _precision(config.trainer.precision) or fast_precision(device.type)
    workload = Workload(
        list(config.size), config.in_channels, config.num_classes, config.batch_size, config.repeats, device, precision
    )
    print_costs(makers, workload)


@_command("explain")
def explain(config: DictConfig) -> None:
    """Draw what a trained network has learned, and what it looks at in a file."""
    _check_complete(config, "python src/explain.py checkpoint=RUN input=FILE")
    from segline.interpretation import explain as explaining

    plain = _listed(_plain(config))
    device, class_name = _device(config.trainer), plain.pop("class")
    del plain["trainer"]
    explaining.explain(**plain, device=device, class_name=class_name)


def _check_complete(config: DictConfig, usage: str) -> None:
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{' and '.join(f'{key}=' for key in missing)} missing; {usage}")


def _resolve(config: DictConfig, run: dict[str, Any]) -> DictConfig:
    """The config without interpolations, with the name and the choices of the run."""
    from segline.data.folder import discover

    # Points of a sweep have the same files: what is found of them is said once.
    config.data = discover(config.data, quiet=run["sweep"] is not None and bool(HydraConfig.get().job.num))
    return OmegaConf.create({"run": run, **_plain(config)})


def _refuse_secrets(settings: dict[str, Any], run_dir: Path) -> None:
    """Refuse a config or a command with a secret in it, and take back what Hydra has written of it where it was told to."""
    hydra_config = HydraConfig.get()
    # Hydra's own are kept nowhere with their references resolved; those of the run are.
    typed = [*hydra_config.overrides.task, *as_list(hydra_config.overrides.hydra)]
    try:
        refuse_secrets(settings, typed)
    except ValueError:
        if hydra_config.output_subdir is not None:
            for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
                (run_dir / hydra_config.output_subdir / name).unlink(missing_ok=True)
            with suppress(OSError):
                (run_dir / hydra_config.output_subdir).rmdir()
        raise


def _plain(config: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _num_processes(trainer: DictConfig, beside: bool = False) -> int:
    """How many processes the job takes: as asked for, or one for each GPU, unless other jobs of its sweep run beside it."""
    if trainer.devices != "auto":
        if not isinstance(trainer.devices, int) or trainer.devices < 1:
            raise ValueError(
                f"trainer.devices is {trainer.devices}; expected a number of processes, or auto for one a GPU; "
                "which GPUs is said by CUDA_VISIBLE_DEVICES"
            )
        return trainer.devices
    import torch

    processes = max(1, torch.cuda.device_count()) if trainer.accelerator in _MAY_BE_GPU else 1
    if beside and processes > 1:
        raise ValueError(
            f"trainer.devices=auto is all {processes} GPUs for each job, but several jobs of this sweep run here at once; set "
            "trainer.devices=1, or as many as each of them shall have"
        )
    return processes
