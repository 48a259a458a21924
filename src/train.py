"""Train a network: `python src/train.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("train")
