"""The command line of `compare`: folders, and a few settings among them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from segline.commit import committed
from segline.comparison.compare import METRICS, Comparison, compare_runs
from segline.comparison.text import said
from segline.words import nearest

_HELP = """Compare runs: which is better, and is it so?

    python src/compare.py runs/*                              every run there is
    python src/compare.py runs/2026-05-04_sweep               the runs of a sweep
    python src/compare.py runs/a runs/b metric=iou_case       another score
    python src/compare.py runs/* against=unet                 one method against all others
    python src/compare.py runs/* output=compare.html          a page with curves, costs, groups and settings
    python src/compare.py runs/* output=table.tex             for a paper

Runs that differ by their seeds or folds alone are one method. Their scores are averaged over them for each case, then over the cases of a
group (patient, scene, tile). For each pair of methods: the mean difference with an interval of 95 % (paired bootstrap of groups), and a
test by flips of signs, corrected for the number of pairs (Holm), which alone decides: better, worse, no evidence, or too few groups.
A class that neither the truth nor the prediction of a case has gives no score; where another of these runs invents it, this one gets 1.

  metric=dice_case        score of a case: {metrics}; of one class: dice_case/nucleus;
                          those of surfaces and boundaries where each run has been evaluated: python src/eval.py checkpoint=RUN
  split=test              part of the data; by default the test part where all runs have one, else val; or an evaluation by the name of
                          its folder in runs/RUN/eval, such as val_tta-flips or val_tolerance-2
  against=METHOD          compare all with this one, by the name that the table shows or by a run's folder; by default all pairs
  output=FILE             a page (.html), or the tables (.md, .tex)
  trust=[PACKAGE]         packages besides segline's own whose networks may be built for the page's pictures"""


_NO_PICTURES = "trust= is for the pictures of a page, and there is none; set output=compare.html, or leave it out"


def main(arguments: Sequence[str]) -> None:
    """Compare as the command line says."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(_HELP.format(metrics=", ".join(METRICS)))
        sys.exit(0 if arguments else 2)
    places, settings = read(arguments)
    output = settings.pop("output", None)
    trust = [name.strip(" '\"") for name in settings.pop("trust", "").strip("[]").split(",") if name]
    if trust and not output:
        raise ValueError(_NO_PICTURES)
    write = _writer(output, trust) if output else None
    comparison = compare_runs(places, **settings)
    print(said(comparison))
    if write and output:
        write(Path(output), comparison)
        print(f"\n{output}")


def read(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Folders and settings; a folder's name may have a = in it.

    Raises:
        ValueError: A setting that does not exist, or no folder.

    >>> read(["runs/0_lr=0.1", "metric=iou_case"])
    (['runs/0_lr=0.1'], {'metric': 'iou_case'})
    """
    known = ("metric", "split", "against", "output", "trust")
    settings = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in known}
    places = [argument for argument in arguments if argument.partition("=")[0] not in known]
    if odd := [
        place
        for place in places
        if place.partition("=")[0].isidentifier() and "=" in place and not Path(place).exists()
    ]:
        raise ValueError(f"{odd[0]} is no folder and no setting.{nearest(odd[0].partition('=')[0], known)}")
    if not places:
        raise ValueError("no runs to compare; name their folders, such as runs/*")
    return places, settings


def _writer(output: str, trust: Sequence[str]) -> Callable[[Path, Comparison], object]:
    """What writes a file of this ending; asked before the work is done."""
    styles = {".md": "markdown", ".tex": "latex"}
    suffix = Path(output).suffix.lower()
    if suffix == ".html":
        from segline.comparison.page import write_with_panels

        return partial(write_with_panels, trust=trust)
    if suffix not in styles:
        raise ValueError(f"output={output}: expected a name that ends in .html, {' or '.join(styles)}")
    if trust:
        raise ValueError(_NO_PICTURES)

    def write(path: Path, comparison: Comparison) -> None:
        with committed(path) as temporary:
            temporary.write_text(said(comparison, styles[suffix]) + "\n")

    return write
