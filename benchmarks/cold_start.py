"""Seconds from the command to the end of a first step and a first validation, on a machine that never ran segline.

    python benchmarks/cold_start.py

Synthetic scenes are written, scanned and loaded anew, in a cache of its own; Python's and the disk's caches are as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "src" / "train.py"


def main() -> None:
    """Print the seconds for each domain."""
    for data in ("satellite", "biomedical", "driving", "biomedical3d"):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder, "run", "metrics.csv")
            command = [sys.executable, str(TRAIN), f"data={data}", "logger=none", f"hydra.run.dir={table.parent}"]
            command += ["data.steps_per_epoch=1", "callbacks.pictures=false"]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, env={**os.environ, "SEGLINE_CACHE": f"{folder}/cache"}, stdout=subprocess.DEVNULL
            )
            while not table.exists() and process.poll() is None:
                time.sleep(0.05)
            print(f"{data}: {time.perf_counter() - start:.1f} s", flush=True)
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
