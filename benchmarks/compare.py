"""How long a comparison takes, and how soon its page can be used: made-up runs, as a sweep leaves them.

python benchmarks/compare.py

50 runs of 5,000 cases in the terminal; 200 runs of 500 epochs as a page, opened in Chromium where there is one. Each as methods of five
seeds in groups of five cases, as a study leaves them, and as methods of one seed whose cases are groups of their own, as a search does.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

SRC = Path(__file__).parents[1] / "src"
sys.path.insert(0, str(SRC))

from segline import tables  # noqa: E402


def write_runs(folder: Path, methods: int, seeds: int, cases: int, epochs: int, in_group: int) -> None:
    rng = np.random.default_rng(0)
    hard = rng.beta(5, 2, cases)
    for method in range(methods):
        for seed in range(seeds):
            run = folder / f"{method}_{seed}"
            run.mkdir(parents=True)
            choices = {"data": "made_up", "model": f"network_{method}", "loss": "dice_ce"}
            config = {"run": {"name": run.name, "choices": choices}, "seed": seed, "objective": "val/iou"}
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            scores = np.clip(hard + 0.001 * method + rng.normal(0, 0.02, cases), 0, 1)
            rows = [
                {
                    "split": "val",
                    "case": f"case {k}",
                    "group": f"patient {k // in_group}",
                    "dice/organ": s,
                    "iou/organ": s / (2 - s),
                }
                for k, s in enumerate(scores.tolist())
            ]
            tables.write_cases(run / "cases.parquet", rows)
            tables.write_json(run / "scores.json", {"val/dice": float(scores.mean())})
            tables.write_json(
                run / "costs.json",
                {"weights": 1e6 * (method + 1), "steps": epochs, "seconds": 60.0, "memory_mb": 900.0},
            )
            with (run / "metrics.csv").open("w") as file:
                writer = csv.writer(file)
                writer.writerow(
                    ["epoch", "step", "seconds", "lr", "train/loss", "val/loss", "val/iou", "val/dice", "val/dice_case"]
                )
                for epoch in range(epochs):
                    writer.writerow([epoch, 10 * epoch, epoch, 1e-3, *rng.uniform(0, 1, 5)])


def compare(folder: Path, *settings: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, str(SRC / "compare.py"), str(folder), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds_to_interactive(path: Path) -> float | None:
    """Until a click on a heading has sorted the table of runs; None without a browser."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.locator("#runs-table th").first.click()
        page.wait_for_selector("#runs-table th[aria-sort]")
        taken = time.perf_counter() - start
        browser.close()
    return taken


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seeds, in_group in ((5, 5), (1, 1)):
            cases, epochs = folder / f"cases_{seeds}", folder / f"epochs_{seeds}"
            write_runs(cases, 50 // seeds, seeds, cases=5000, epochs=10, in_group=in_group)
            print(f"50 runs ({50 // seeds} methods) of 5,000 cases, in the terminal: {compare(cases):.1f} s")
            write_runs(epochs, 200 // seeds, seeds, cases=100 if seeds > 1 else 5000, epochs=500, in_group=in_group)
            page = folder / "compare.html"
            taken = compare(epochs, f"output={page}")
            print(f"200 runs ({200 // seeds} methods) of 500 epochs, as a page: {taken:.1f} s")
            print(f"the page: {page.stat().st_size / 2**20:.1f} MiB")
            if (opened := seconds_to_interactive(page)) is not None:
                print(f"from opening it to a sorted table in Chromium: {opened:.1f} s")


if __name__ == "__main__":
    main()
