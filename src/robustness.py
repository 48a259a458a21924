"""Measure a trained network on corrupted and attacked cases: `python src/robustness.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("robustness")
