"""Search by Optuna: what to train next, from what has been reached so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from segline import tables
from segline.config import CONF_DIR, build
from segline.secrets import refuse_secrets
from segline.sweep.folder import SWEEP, alone, study_address, study_name
from segline.sweep.grid import point_name
from segline.sweep.points import Point, State, state_of
from segline.sweep.run import MOST_STARTS, Sweep, read_objective
from segline.tables import COSTED, COSTS

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: Where the best trial stands as an experiment, below the sweep's folder.
BEST = Path("experiment") / "best.yaml"
#: Attribute of a study: which sweep's it is.
_SWEEP = "segline_sweep"
#: After this a trial whose values have not been drawn is one whose command was killed meanwhile.
_LONGEST_ASK = timedelta(hours=1)
#: Of a trial's number in its folder's name, which must not change with how many trials there shall be.
_DIGITS = 4


class Search:
    """A study of Optuna's, whose trials are runs.

    What is asked next depends on the seed, the trial's number and the trials before it alone, so that a search that was stopped goes on
    as if it had not been. Several commands may work on one study at once.

    Args:
        sweep: What is searched.
        n_trials: How many trials there are in all, failed and pruned ones too.
        sampler: Config of an Optuna sampler, without its seed.
        pruner: Config of an Optuna pruner, which ends bad trials early; None for none.
        seed: Of the sampler.
        batch: Trials that are asked for at once, for a launcher that trains several.
        storage: Address of the study's database; None: an SQLite file in the sweep's folder.
        study: Its name; None: one of its own, after the folder.
        constraints: Most that a run may take, by a name of its `costs.json`: `{seconds: 600, weights: 5e6}`.

    Raises:
        ValueError: A value that cannot be, or nothing to search.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        n_trials: int,
        sampler: Any,
        pruner: Any = None,
        seed: int = 0,
        batch: int = 1,
        storage: str | None = None,
        study: str | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        for name, value in (("n_trials", n_trials), ("batch", batch)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"hydra.sweeper.{name} is {value}; expected 1 or more")
        self.sweep, self.n_trials, self.seed, self.batch = sweep, n_trials, seed, batch
        self.sampler, self.pruner, self.storage, self.name = sampler, pruner, storage, study
        self.constraints = {name: most for name, most in (constraints or {}).items() if most is not None}
        for name, most in self.constraints.items():
            if name not in COSTED or most <= 0:
                raise ValueError(
                    f"hydra.sweeper.constraints.{name} is {most}; expected a number above 0 for some of {', '.join(COSTED)}"
                )
        self.space = {one.get_key_element(): distribution(one) for one in sweep.overrides if one.is_sweep_override()}
        if not self.space:
            raise ValueError(
                "there is nothing to search; give values or intervals, such as loss=dice_ce,focal "
                "'optimizer.lr=tag(log,interval(1e-5,1e-2))'"
            )

    def run(self) -> list[float | None]:
        """Ask, train and tell until there are enough trials; the objective of each.

        Raises:
            ValueError: Some trials failed.
        """
        config = self.sweep.check(self._covering())
        with self.sweep.folder({"search": self._said(), "config": config}, self._is_done) as folder:
            study = self._study(folder)
            there = len(study.trials)
            searched = (str(one.input_line) for one in self.sweep.overrides if one.is_sweep_override())
            print(
                "\n          ".join(
                    [
                        f"sweep     {folder}",
                        f"{there} of {self.n_trials} trials there; searched are:",
                        *searched,
                        *self._one_at_a_time(),
                    ]
                )
            )
            starts: Counter[int] = Counter()
            while trials := self._next(study, folder, starts):
                points = [self._point(trial.params, trial.number) for trial in trials]
                started = self.sweep.launch(folder, points, trials[0].number)
                starts.update(t.number for t, point in zip(trials, points, strict=True) if point.name in started)
                with alone(folder):
                    for trial in trials:
                        self._tell(study, folder, trial.number, starts)
            points = [self._point(trial.params, trial.number) for trial in study.trials if self._is_asked(trial)]
            again = "more trials take their place: set a larger hydra.sweeper.n_trials"
            best = self._best(study)
            further = self._write_best(study, folder, best)
            among = [] if best is None else [self._point(best.params, best.number)]
            return self.sweep.report(folder, points, again, further, among=among)

    def _one_at_a_time(self) -> list[str]:
        """A word to who set up a launcher that trains several jobs, and gives it one."""
        launcher = self.sweep.config.hydra.launcher
        if self.batch > 1 or launcher._target_.endswith(".BasicLauncher") or launcher.get("n_jobs", -1) in (1, None):
            return []
        return ["the launcher gets one trial at a time; hydra.sweeper.batch=8 gives it eight at once"]

    def _covering(self) -> Iterator[Point]:
        """Points that have each choice once at least, and one of each interval."""
        choices = {key: getattr(space, "choices", (getattr(space, "low", None),)) for key, space in self.space.items()}
        for number in range(max(map(len, choices.values()))):
            yield self._point({key: values[number % len(values)] for key, values in choices.items()}, number)

    def _said(self) -> dict[str, Any]:
        plain = OmegaConf.to_container(OmegaConf.create({"sampler": self.sampler, "pruner": self.pruner}))
        # As it was written: what it gets from the environment may be a password.
        storage = OmegaConf.to_container(self.sweep.config.hydra.sweeper).get("storage")  # type: ignore[union-attr]
        refuse_secrets({"hydra.sweeper.storage": storage})
        told = {"storage": storage, "study": self.name, "constraints": self.constraints}
        return {**plain, "seed": self.seed, **told}  # type: ignore[dict-item]

    def _is_done(self, folder: Path) -> bool:
        study = self._study(folder)
        return sum(trial.state.is_finished() for trial in study.trials) >= self.n_trials

    def _study(self, folder: Path) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with alone(folder):  # two commands cannot make the tables of one database
            study = optuna.create_study(
                storage=study_address(folder),
                study_name=study_name(folder),
                direction="minimize" if self.sweep.minimize else "maximize",
                pruner=build(self.pruner) if self.pruner else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            here = {"id": tables.read_json(folder / SWEEP)["id"], "folder": str(folder)}
            there = study.user_attrs.get(_SWEEP, {"id": None} if study.trials else here)
            if there["id"] != here["id"]:
                raise ValueError(
                    f"the study {study.study_name!r} of that database is not of {folder}, but of {there.get('folder', 'another program')}; "
                    "go on with it there by hydra.sweep.dir=, or name another one by hydra.sweeper.study="
                )
            study.set_user_attr(_SWEEP, there)
            return study

    def _next(self, study: Study, folder: Path, starts: Counter[int]) -> list[FrozenTrial]:
        """Trials to train: those that a killed command has left, then new ones."""
        from optuna.trial import TrialState

        with alone(folder):
            for trial in study.get_trials(states=[TrialState.RUNNING]):
                if self._is_asked(trial):
                    self._tell(study, folder, trial.number, starts)
                # Whoever asked for it was killed meanwhile: on this machine it would have been alone.
                elif self.storage is None or datetime.now() - (trial.datetime_start or datetime.now()) > _LONGEST_ASK:
                    study.tell(trial.number, state=TrialState.FAIL)
            left = list(filter(self._is_asked, study.get_trials(states=[TrialState.RUNNING])))
            due = [t for t in left if state_of(folder / self._point(t.params, t.number).name) is not State.RUNNING]
            while len(due) < self.batch and len(study.trials) < self.n_trials:
                study.sampler = build(self.sampler, seed=seed_of(self.seed, len(study.trials)))
                number = study.ask(self.space).number
                due.append(study.trials[number])
        return due[: self.batch]

    def _is_asked(self, trial: FrozenTrial) -> bool:
        """Whether a trial knows all of its values: Optuna draws them after it has noted the trial."""
        return trial.params.keys() == self.space.keys()

    def _tell(self, study: Study, folder: Path, number: int, starts: Counter[int]) -> None:
        """Let the study know how a trial ended, if it did."""
        from optuna.trial import Trial, TrialState

        trial = study.trials[number]
        run = folder / self._point(trial.params, number).name
        state, score = state_of(run), read_objective(run, self.sweep.objective)
        if trial.state.is_finished():
            return
        if state is State.FINISHED and score is not None:
            costs, asked = tables.read_json(run / COSTS), Trial(study, trial._trial_id)
            for name, most in self.constraints.items():
                asked.set_constraint(name, costs[name] / most - 1)
            for name, value in {"run": run.name, **costs}.items():
                asked.set_user_attr(name, value)
            study.tell(number, score)
        elif state is State.PRUNED:
            study.tell(number, state=TrialState.PRUNED)
        # One that failed under a command before this one is tried again.
        elif (
            starts[number] and (state is not State.OPEN or starts[number] >= MOST_STARTS) and state is not State.RUNNING
        ):
            study.tell(number, state=TrialState.FAIL)

    def _point(self, params: Mapping[str, Any], number: int) -> Point:
        """A trial as a point."""
        searched = [f"{key}={params[key]}" for key in self.space]
        fixed = [o for o in self.sweep.overrides if not o.is_sweep_override()]
        plain = [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in fixed]
        reporting = [f"trial={number}"] if self.pruner else []
        return Point(point_name(number, _DIGITS, searched), (*plain, *searched, *reporting))

    def _best(self, study: Study) -> FrozenTrial | None:
        """The best trial; None if none has ended, or none keeps the constraints."""
        try:
            return study.best_trial
        except ValueError:
            return None

    def _write_best(self, study: Study, folder: Path, best: FrozenTrial | None) -> str:
        """Leave the best trial as a config for `experiment=best`; how that is used."""
        from segline.commit import committed

        if best is None:
            return "no trial has ended within the constraints" if self.constraints else "no trial has ended"
        point = self._point(best.params, best.number)
        content = experiment(point.overrides)
        head = f"# The best of {len(study.trials)} trials: {self.sweep.objective} {best.value:.4f}.\n"
        (folder / BEST).parent.mkdir(exist_ok=True)
        with committed(folder / BEST) as temporary:
            temporary.write_text("# @package _global_\n" + head + yaml.safe_dump(content, sort_keys=False))
        return f"again     python src/train.py --config-dir {folder} experiment=best"


def seed_of(seed: int, number: int) -> int:
    """Of the sampler of one trial: searches of neighbouring seeds have no draws in common."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws from for values, a range or an interval; the tag `log` makes it logarithmic, `int(...)` whole.

    Raises:
        ValueError: An interval without an end.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or low >= high:
            raise ValueError(f"{override.input_line} is no interval; expected one such as interval(0.1,0.5)")
        kind: Any = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        if "log" in value.tags and low <= 0:
            raise ValueError(f"{override.input_line} has no logarithm at its start; expected one above 0")
        return kind(low, high, log="log" in value.tags)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        if "log" in value.tags:
            raise ValueError(
                f"{override.input_line} has steps; expected tag(log,interval(1,100)) without, or a list of values"
            )
        numbers = list(override.sweep_iterator())
        kind = IntDistribution if all(isinstance(number, int) for number in numbers) else FloatDistribution
        return kind(numbers[0], numbers[-1], step=value.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def experiment(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides as the content of an `experiment=` file: choices of groups as defaults, other values at their places."""
    defaults: list[Any] = []
    values = OmegaConf.create({})
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in ("sweep", "trial", "resume"):
            continue
        if key == "experiment":
            defaults.insert(0, f"/experiment/{override.value()}")  # what follows goes on top
        elif (CONF_DIR / key).is_dir():
            defaults.append({f"override /{key}": override.value()})
        else:
            OmegaConf.update(values, key, override.value())
    return {"defaults": defaults, **OmegaConf.to_container(values)}  # type: ignore[dict-item]
