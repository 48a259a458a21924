"""What a sweep costs besides its trainings: 20 tiny jobs by one command, beside the training part of one alone.

python benchmarks/sweeps.py

The ratio is the wall time of the sweep, from its command on, by 20 times the seconds that one job takes from its resolved config to its
report, in a process that has imported everything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SRC = Path(__file__).parents[1] / "src"
JOBS = 20
TINY = [
    "data=biomedical", "data.window=[64,64]", "data.margin=[8,8]", "model=unet", "model.channels=[8,16,32]", "logger=none",
    "callbacks.pictures=false", "data.num_workers=0", "data.steps_per_epoch=20",
]  # fmt: skip


def job_alone(folder: Path, steps: int) -> float:
    """Seconds of the second of two jobs in one process, which has imported and cached all."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(SRC)!r})\n"
        "from pathlib import Path; from omegaconf import OmegaConf; from segline.config import compose; from segline import job\n"
        "for k in range(2):\n"
        f"    folder = Path({str(folder)!r}) / f'alone_{{k}}'; folder.mkdir(parents=True)\n"
        f"    config = OmegaConf.to_container(compose({[*TINY, f'trainer.max_steps={steps}']!r}), resolve=True)\n"
        "    choices = {'data': 'biomedical', 'model': 'unet', 'loss': 'dice_ce'}\n"
        "    OmegaConf.save(OmegaConf.create({'run': {'name': 'alone', 'choices': choices}, **config}), folder / 'config.yaml')\n"
        "    start = time.perf_counter(); job.run(folder / 'config.yaml'); taken = time.perf_counter() - start\n"
        "print('taken', taken)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of each job")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = job_alone(folder, args.steps)
        seeds = f"seed={','.join(map(str, range(JOBS)))}"
        command = [*TINY, f"trainer.max_steps={args.steps}", seeds, f"hydra.sweep.dir={folder}/sweep"]
        start = time.perf_counter()
        subprocess.run([sys.executable, str(SRC / "train.py"), "-m", *command], check=True, capture_output=True)
        sweep = time.perf_counter() - start
    print(f"one job alone: {alone:.1f} s; a sweep of {JOBS}: {sweep:.1f} s; ratio {sweep / (JOBS * alone):.2f}")


if __name__ == "__main__":
    main()
