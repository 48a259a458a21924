"""A sweep by our sweepers and Hydra's launcher, of a training that is made up: `python made_up_sweep.py LOG overrides`.

Each point notes in the file LOG that it begins and ends, takes 0.05 s (or what POINT_SECONDS says), and reaches a score that its
overrides decide. `seed=13` fails, `seed=99` ends the process as the system would.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.initialize import initialize_config_dir
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from segline.config import CONF_DIR, offer_own_data
from segline.sweep.points import once


def sweep(overrides: list[str], log: Path) -> Any:
    """Run it; what the sweeper returns."""

    def note(word: str, folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{word} {folder.name}\n")

    def task(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)

        def train() -> None:
            note("begin", folder)
            if config.seed == 13:
                raise ValueError("thirteen")
            if config.seed == 99:
                os._exit(1)
            time.sleep(float(os.environ.get("POINT_SECONDS", "0.05")))
            score = -((math.log10(config.optimizer.lr) + 3) ** 2) - config.seed
            (folder / "costs.json").write_text(json.dumps({"weights": 10 * config.optimizer.lr, "seconds": 1}))
            note("end", folder)
            (folder / "scores.json").write_text(json.dumps({"val/iou": score}))

        once(folder, train)

    offer_own_data()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            "train", [*overrides, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
        return sweeper.sweep(arguments=list(config.hydra.overrides.task))


def start(folder: Path, *overrides: str, seconds: float = 0.05) -> subprocess.Popen[str]:
    """The same in a process of its own, in a folder that its sweeps come to lie in; a point takes so many seconds."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)])
    command = [sys.executable, __file__, "log", *overrides]
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path, "POINT_SECONDS": str(seconds)},
    )


def begun(log: Path) -> int:
    return sum(line.startswith("begin ") for line in log.read_text().splitlines()) if log.exists() else 0


def ended(log: Path) -> Counter[str]:
    return Counter(line.split(" ", 1)[1] for line in log.read_text().splitlines() if line.startswith("end "))


if __name__ == "__main__":
    try:
        sweep(sys.argv[2:], Path(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
