"""What Hydra finds: our sweepers. All that is heavy is imported when a sweep starts, for Hydra imports this at every start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class _SeglineSweeper(Sweeper):
    """Knows what it was started with."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.started = hydra_context, task_function, config


class GridSweeper(_SeglineSweeper):
    """Every combination of values.

    Args:
        params: Overrides with values, by key; those of the command line go on top.
    """

    def sweep(self, arguments: Sequence[str]) -> Any:
        """Train every point that is not done yet."""
        from segline.sweep.run import Sweep

        return Sweep(*self.started, self.params, arguments).run_grid()


class OptunaSweeper(_SeglineSweeper):
    """Search by Optuna.

    Args:
        params: As of `GridSweeper`; intervals, too: `tag(log, interval(1e-5, 1e-2))`.
        search: Of `segline.sweep.search.Search`.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, **search: Any) -> None:
        super().__init__(params)
        self.search = search

    def sweep(self, arguments: Sequence[str]) -> Any:
        """Train trial after trial."""
        from segline.sweep.run import Sweep
        from segline.sweep.search import Search

        return Search(Sweep(*self.started, self.params, arguments), **self.search).run()
