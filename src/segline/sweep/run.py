"""A sweep from its command to its last point, by whatever launcher Hydra is told to use."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from segline.config import as_list
from segline.processes import LAUNCHED
from segline.secrets import refuse_secrets
from segline.sweep.ensembles import are_repeats, write_ensembles
from segline.sweep.folder import sweep_folder
from segline.sweep.grid import grid
from segline.sweep.points import ERROR, Point, State, begun_at, state_of
from segline.tables import CASES, SCORES, read_json
from segline.words import count_of, in_quotes, less_is_better

#: How often a point is started by one command: again if it ended without a word, as when the system killed it.
MOST_STARTS = 2
_SECONDS_BETWEEN_LOOKS = 1.0
#: Reasons of failed points that are said at most.
_SAID = 10


#: How points of a grid that failed are tried again.
_AGAIN = "the same command tries them again"


class Sweep:
    """Points to train, and where.

    Args:
        hydra_context: Of the command.
        task_function: What a launcher calls with the config of each point.
        config: Of the command, Hydra's own part too.
        params: Overrides with values, by key.
        arguments: Of the command line; those with keys of `params` replace them.
    """

    def __init__(
        self,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
        params: Mapping[str, Any],
        arguments: Sequence[str],
    ) -> None:
        if LAUNCHED in os.environ:
            raise ValueError(
                "a sweep starts the processes of each point itself: leave torchrun out, and set trainer=ddp trainer.devices=N"
            )
        given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        # As they were typed: a reference to the environment is how to give the address of a study.
        refuse_secrets({}, [*given, *as_list(config.hydra.overrides.hydra)])
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        parsed = parser.parse_overrides(given)
        self.overrides: list[Override] = list({one.get_key_element(): one for one in parsed}.values())
        self.objective = str(config.objective)
        self._idle_launches = 0

    def run_grid(self) -> list[float | None]:
        """Train every combination; the objective of each.

        Raises:
            ValueError: Some points failed.
        """
        points = grid(self.overrides)
        config = self.check(_covering(points))
        with self.folder({"config": config}, lambda folder: not _left(folder, points)) as folder:
            there = len(points) - len(_left(folder, points))
            print(
                f"sweep     {folder}\n          {count_of(len(points), 'point')}{f', {there} of them done' if there else ''}"
            )
            starts: Counter[str] = Counter()
            while todo := [p for p in points if _is_due(state_of(folder / p.name), starts[p.name])]:
                # One that was killed may have taken others with it: it is launched by itself, and those that had not begun together.
                killed = [point for point in todo if starts[point.name]]
                for part in filter(None, [[p for p in todo if p not in killed], *([point] for point in killed)]):
                    starts.update(self.launch(folder, part, points.index(part[0])))
            ensembles = write_ensembles(folder, points)
            further = "\n".join(f"ensemble  {one} (checkpoint= of predict.py)" for one in ensembles)
            return self.report(folder, points, _AGAIN, further, repeats=are_repeats(points))

    def check(self, points: Iterable[Point]) -> str:
        """Compose the configs of some points, for what is misspelt is said before hours are spent; a digest of them."""
        digest = hashlib.sha256()
        for point in points:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(point.overrides))
            own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
            refuse_secrets(OmegaConf.to_container(own))
            digest.update(OmegaConf.to_yaml(own).encode())
        return digest.hexdigest()[:16]

    def folder(self, further: Mapping[str, Any], done: Callable[[Path], bool]) -> AbstractContextManager[Path]:
        """The folder of this very sweep; `further` is what it is told by besides its overrides."""
        hydra = self.config.hydra
        command = {"overrides": [str(one.input_line) for one in self.overrides], **further}
        chosen = any(one.startswith("hydra.sweep.dir=") for one in as_list(hydra.overrides.hydra))
        return sweep_folder(Path(hydra.sweep.dir).absolute(), chosen, command, done)

    def launch(self, folder: Path, points: Sequence[Point], first: int) -> set[str]:
        """Train points as the launcher does; what became of each is in its folder.

        Args:
            folder: Of the sweep.
            points: Of it.
            first: Number of the first one.

        Returns:
            The names of those that were started.

        Raises:
            ValueError: The launcher ended by an error and had started nothing, twice in a row.
        """
        with read_write(self.config.hydra), open_dict(self.config.hydra):
            self.config.hydra.sweep.dir = str(folder)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        resume = [] if any(one.get_key_element() == "resume" for one in self.overrides) else ["resume=auto"]
        jobs = [
            [
                *p.overrides,
                *resume,
                f"hydra.sweep.dir={in_quotes(str(folder))}",
                f"hydra.sweep.subdir={in_quotes(p.name)}",
            ]
            for p in points
        ]
        before = {point.name: begun_at(folder / point.name) for point in points}

        def started() -> set[str]:
            return {name for name, when in before.items() if begun_at(folder / name) != when}

        try:
            launcher.launch(jobs, initial_job_idx=first)
            self._idle_launches = 0
            return started() or set(
                before
            )  # of jobs that vanish without a word each counts: they are not launched for ever
        except Exception as error:  # of the launcher, such as a worker that was killed; points keep their own errors
            said = f"the launcher ended with {type(error).__name__}: {error}"
            # A worker may have died on its way; a launcher that is out of order would use up every trial.
            self._idle_launches = 0 if started() else self._idle_launches + 1
            if self._idle_launches == MOST_STARTS:
                raise ValueError(f"{said}; nothing was started") from error
            print(said, file=sys.stderr)
            # Some launchers end at the first job that is killed, and others go on.
            while any(state_of(folder / point.name) is State.RUNNING for point in points):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            return started()
        except (KeyboardInterrupt, SystemExit):
            there = len(list(folder.glob(f"*/{SCORES}")))
            print(f"\nstopped   {folder}: {count_of(there, 'point')} done; the same command goes on", flush=True)
            raise

    def report(
        self,
        folder: Path,
        points: Sequence[Point],
        again: str,
        further: str = "",
        *,
        among: Sequence[Point] | None = None,
        repeats: bool = False,
    ) -> list[float | None]:
        """Say how the points ended, and what else there is to say; the objective of each.

        Args:
            folder: Of the sweep.
            points: Of it.
            again: How those that failed are tried again.
            further: What else there is to say.
            among: Points of which the best is named; None: all.
            repeats: Whether they differ by what nobody chooses among, as seeds: then none is the best.

        Raises:
            ValueError: Some failed.
        """
        states = {point.name: state_of(folder / point.name) for point in points}
        scores = [read_objective(folder / point.name, self.objective) for point in points]
        counts = Counter(states.values())
        print(f"\nsweep     {folder}")
        print(f"          {', '.join(f'{counts[state]} {state.value}' for state in State if counts[state])}")
        reached = {
            point: score
            for point, score in zip(points, scores, strict=True)
            if score is not None and (among is None or point in among)
        }
        if reached and repeats and (folder / next(iter(reached)).name / CASES).exists():
            from segline.comparison.compare import compare_runs
            from segline.comparison.text import said

            print(f"\n{said(compare_runs([str(folder)]))}\n")
        elif reached:
            point = (min if self.minimize else max)(reached, key=lambda point: reached[point])
            print(f"best      {point.name}, {self.objective} {reached[point]:.4f}")
        print(f"compare   python src/compare.py {folder}")
        print(further, end="\n" if further else "", flush=True)
        bad = [name for name, state in states.items() if state in (State.FAILED, State.OPEN)]
        if bad:
            why = "\n".join(f"  {said}" for said in _reasons(folder, bad))
            raise ValueError(f"{len(bad)} of {count_of(len(points), 'point')} failed; {again}:\n{why}")
        return scores

    @property
    def minimize(self) -> bool:
        """Whether less of the objective is better."""
        return less_is_better(self.objective)


def read_objective(folder: Path, objective: str) -> float | None:
    """What a point reached; None if it has not ended, or where there is no such score."""
    value = read_json(folder / SCORES).get(objective)
    return None if value is None or value != value else float(value)


def _left(folder: Path, points: Sequence[Point]) -> list[Point]:
    return [point for point in points if state_of(folder / point.name) not in (State.FINISHED, State.PRUNED)]


def _is_due(state: State, starts: int) -> bool:
    """Whether a point is to be started: an open one, or one that failed before this command."""
    return (state is State.OPEN and starts < MOST_STARTS) or (state is State.FAILED and not starts)


def _covering(points: Sequence[Point]) -> list[Point]:
    """Points that have each override once at least."""
    seen: set[str] = set()
    chosen = []
    for point in points:
        if not seen.issuperset(point.overrides):
            seen.update(point.overrides)
            chosen.append(point)
    return chosen


def _reasons(folder: Path, names: Sequence[str]) -> list[str]:
    """Why points failed, each reason once with the first of its points, and where that said more."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_why(folder / name), []).append(name)
    said = []
    for why, (first, *others) in alike.items():
        more = f" and {count_of(len(others), 'other')}" if others else ""
        where = f" ({folder / first / ERROR})" if (folder / first / ERROR).exists() else ""
        said.append(f"{first}{more}: {why.splitlines()[0]}{where}")
    return said if len(said) <= _SAID else [*said[:_SAID], f"and {count_of(len(said) - _SAID, 'further reason')}"]


def _why(folder: Path) -> str:
    said = (folder / ERROR).read_text().partition("\n\n")[0].strip() if (folder / ERROR).exists() else ""
    return said or "it ended without a word, as if it was killed"
