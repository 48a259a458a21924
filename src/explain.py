"""Look into a trained network: `python src/explain.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("explain")
