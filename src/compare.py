"""Compare runs: `python src/compare.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("compare")
