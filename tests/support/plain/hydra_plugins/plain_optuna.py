"""A sweeper as one writes it: ask Optuna, let Hydra's launcher train, tell Optuna."""

from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class PlainOptunaSweeper(Sweeper):
    """Two trials of a learning rate."""

    def __init__(self, **_: Any) -> None:
        """Settings of Hydra's own sweeper mean nothing here."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        study = optuna.create_study()
        for number in range(2):
            trial = study.ask()
            rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            (done,) = self.launcher.launch([[*arguments, f"+lr={rate}"]], initial_job_idx=number)
            study.tell(trial, float(done.return_value))
