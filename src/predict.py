"""Write masks of whole files: `python src/predict.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("predict")
