"""Networks on real data, the same minutes each, and what helps: tables of means and deviations over seeds.

    python benchmarks/networks.py                                  the networks on three data sets: hours
    python benchmarks/networks.py --ablation                       what helps on one of them
    python benchmarks/networks.py --seeds 0 --minutes 1 --data dsb2018 --networks unet attention_unet

Each run is one of `src/train.py experiment=DATA model=NETWORK seed=SEED` in a folder of its own below --runs. The same command
again goes on where it was stopped, and prints the tables of what is there (--print does no more than that). SEGLINE_DATA says where
the data are. Scores are those of the best epoch on the validation part. Nothing else should run beside it: the budget is time.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
#: Data set -> the score of its table.
SCORES = {"hippocampus": "dice_case", "dsb2018": "iou", "camvid": "iou"}
NETWORKS = ("unet", "attention_unet", "unet_plus_plus", "residual_unet")
#: What is changed -> overrides of training, and of evaluation where that is what changes.
ABLATION: dict[str, tuple[list[str], list[str]]] = {
    "unet": (["model=unet"], []),
    "weights averaged over steps": (["model=unet", "callbacks.average_weights=0.99"], []),
    "tested on mirrored images, too": (["model=unet"], ["tta=[flips]"]),
    "windows laid anywhere, not over classes": (["model=unet", "data.foreground=0"], []),
    "no augmentation": (["model=unet", "data/augment=none"], []),
    "loss=ce": (["model=unet", "loss=ce"], []),
    "loss=dice": (["model=unet", "loss=dice"], []),
    "loss=focal": (["model=unet", "loss=focal"], []),
    "residual_unet": (["model=residual_unet"], []),
    "residual_unet without deep supervision": (["model=residual_unet", "model.heads=false"], []),
}


@dataclass(frozen=True)
class Run:
    """One training, and perhaps an evaluation of it."""

    data: str
    seed: int
    overrides: tuple[str, ...]
    evaluation: tuple[str, ...] = ()

    def folder(self, runs: Path) -> Path:
        """Where the training lies."""
        return runs / "_".join([self.data, *self.overrides, f"seed={self.seed}"]).replace("/", ".")

    def make(self, runs: Path, minutes: float) -> None:
        """Train, or go on, and evaluate; what is there already stays."""
        folder = self.folder(runs)
        if not (folder / "scores.json").exists():
            budget = f"trainer.max_time=00:00:{int(minutes):02d}:{round(minutes % 1 * 60):02d}"
            own = [f"experiment={self.data}", *self.overrides, f"seed={self.seed}", budget, "logger=none"]
            self._call("train", *own, f"hydra.run.dir={folder}", "resume=auto")
        if self.evaluation and not self._summary(runs).exists():
            self._call(
                "eval", f"checkpoint={folder}", "split=val", f"output={self._summary(runs).parent}", *self.evaluation
            )

    def score(self, runs: Path) -> float | None:
        """Its score, once it is there."""
        name, folder = SCORES[self.data], self.folder(runs)
        if self.evaluation:
            file = self._summary(runs)
            return json.loads(file.read_text())["scores"][name] if file.exists() else None
        file = folder / "scores.json"
        return json.loads(file.read_text())[f"val/{name}"] if file.exists() else None

    def steps(self, runs: Path) -> int:
        """How many steps its minutes held."""
        with (self.folder(runs) / "metrics.csv").open() as file:
            return int(list(csv.DictReader(file))[-1]["step"])

    def million_weights(self, runs: Path) -> float:
        """Of its network."""
        sys.path.insert(0, str(SRC))
        from segline.checkpoints import read_network

        _, weights = read_network(self.folder(runs))
        running = ("running_mean", "running_var", "num_batches_tracked")
        return sum(w.numel() for name, w in weights.items() if not name.endswith(running)) / 1e6

    def _summary(self, runs: Path) -> Path:
        how = "_".join(self.evaluation).replace("/", ".")
        return self.folder(runs) / "eval" / how / "summary.json"

    def _call(self, command: str, *overrides: str) -> None:
        print(f"\n== {command} {' '.join(overrides)}", flush=True)
        subprocess.run([sys.executable, str(SRC / f"{command}.py"), *overrides], check=True)


def row(name: str, runs_of: Iterable[Run], runs: Path) -> str | None:
    """A line of the table from the runs that are there."""
    done = [(run, score) for run in runs_of if (score := run.score(runs)) is not None]
    if not done:
        return None
    scores = [score for _, score in done]
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    first, steps = done[0][0], statistics.mean(run.steps(runs) for run, _ in done)
    return f"| {name} | {statistics.mean(scores):.3f}{spread} | {len(done)} | {first.million_weights(runs):.2f} | {steps:,.0f} |"


def table(title: str, score: str, rows: Sequence[str | None]) -> None:
    """Print the rows that there are."""
    if any(rows):
        print(f"\n| {title} | `{score}` | seeds | million weights | steps |\n|---|---:|---:|---:|---:|")
        print("\n".join(line for line in rows if line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SCORES, default=list(SCORES), help="experiments")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="choices of model=")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0, help="of training")
    parser.add_argument("--ablation", action="store_true", help="instead: what helps, on dsb2018")
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"), help="where they lie")
    parser.add_argument("--print", action="store_true", help="print what is there and train nothing")
    args = parser.parse_args()
    if "SEGLINE_DATA" not in os.environ and not args.print:
        parser.error(
            "SEGLINE_DATA is not set; let it name the folder of msd_task04_hippocampus, dsb2018_nuclei and camvid"
        )

    tables: dict[tuple[str, str], dict[str, list[Run]]] = {}
    if args.ablation:
        tables["dsb2018", "dsb2018, unet but for"] = {
            name: [Run("dsb2018", seed, tuple(training), tuple(evaluation)) for seed in args.seeds]
            for name, (training, evaluation) in ABLATION.items()
        }
    else:
        for data in args.data:
            rows = {n: [Run(data, seed, (f"model={n}",)) for seed in args.seeds] for n in args.networks}
            tables[data, f"{data}, model="] = rows
    args.runs = args.runs / f"{args.minutes:g}_minutes"
    if not args.print:
        # Seed by seed, so that a table of all rows is there early.
        for _, run in sorted(
            ((k, run) for t in tables.values() for runs_of in t.values() for k, run in enumerate(runs_of)),
            key=lambda pair: pair[0],
        ):
            run.make(args.runs, args.minutes)
    for (data, title), rows in tables.items():
        table(title, SCORES[data], [row(name, runs_of, args.runs) for name, runs_of in rows.items()])


if __name__ == "__main__":
    main()
