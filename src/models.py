"""What networks cost, in one table: `python src/models.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("models")
