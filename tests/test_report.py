import math

from segline import report
from segline.labels import Labels


def test_a_case_is_ranked_by_the_classes_that_means_are_taken_over() -> None:
    labels = Labels({"sky": 0, "car": 1, "tree": 2}, background="sky")
    row = {"case": 0, "dice/sky": 1.0, "dice/car": 0.25, "dice/tree": 0.75}
    assert report._mean_dice(row, labels) == 0.5
    assert report._mean_dice({**row, "dice/tree": None}, labels) == 0.25
    assert math.isnan(report._mean_dice({**row, "dice/car": None, "dice/tree": math.nan}, labels))
