"""Label schemes with plain colours: with a background, without one, and overlapping."""

from segline.labels import Labels

CELLS = Labels(
    {"background": 0, "cell": 1, "mitosis": 2},
    background="background",
    colors={"background": "#000000", "cell": "#ff0000", "mitosis": "#0000ff"},
)
LAND = Labels({"field": 0, "water": 1}, colors={"field": "#00ff00", "water": "#0000ff"})
REGIONS = Labels(
    {"organ": [1, 2], "tumour": [2]}, scheme="overlapping", colors={"organ": "#ff0000", "tumour": "#0000ff"}
)
