"""Measure a trained network on whole cases: `python src/eval.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("eval")
