"""Write a trained network as ONNX: `python src/export.py --help`."""

from segline.cli import main

if __name__ == "__main__":
    main("export")
