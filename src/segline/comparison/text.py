"""A comparison in words and tables: for the terminal, for Markdown and for LaTeX."""

from __future__ import annotations

from statistics import mean, stdev

from segline import tables
from segline.comparison.compare import Comparison
from segline.comparison.methods import Method
from segline.comparison.statistics import Pair
from segline.words import count_of


def method_table(comparison: Comparison, style: str = "plain") -> str:
    """A row for each method: its score, a mean ± deviation over seeds, and what it took; the best first."""
    rows = []
    for method in sorted(comparison.methods, key=lambda m: -mean(comparison.reached[run.folder] for run in m.runs)):
        reached = [comparison.reached[run.folder] for run in method.runs]
        spread = f" ± {stdev(reached):.4f}" if len(reached) > 1 else ""
        costs = [_cost(method, "weights", 1e6, 2), _cost(method, "steps", 1, 0), _cost(method, "seconds", 60, 1)]
        rows.append([method.name, str(len(reached)), f"{mean(reached):.4f}{spread}", *costs])
    head = ["Method", "Runs", f"{comparison.split}/{comparison.metric}", "Million weights", "Steps", "Minutes"]
    return tables.rendered([head, *rows], style)


def _cost(method: Method, name: str, unit: float, digits: int) -> str:
    """The mean over a method's runs; a dash where it is not known."""
    values = [run.costs[name] / unit for run in method.runs if name in run.costs]
    return f"{mean(values):,.{digits}f}" if values else "–"


def pair_table(comparison: Comparison, style: str = "plain") -> str:
    """A row for each pair: the difference with its interval, the test, and the verdict."""
    rows = [["Pair", "Difference", "95 %", "p", "Wins/ties/losses", "Verdict"]]
    rows += [
        [
            f"{pair.one} – {pair.other}",
            f"{pair.difference:+.4f}" if pair.num_groups else "–",
            f"{pair.low:+.4f} to {pair.high:+.4f}" if pair.low == pair.low else "–",
            f"{pair.p:.4f}" if pair.p == pair.p else "–",
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            pair.verdict,
        ]
        for pair in comparison.pairs
    ]
    return tables.rendered(rows, style)


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each pair that differs, and one for those of which that cannot be said."""
    by_name = {method.name: method for method in comparison.methods}
    decided = [pair for pair in comparison.pairs if pair.verdict in ("better", "worse")]
    sentences = [_verdict(pair, [by_name[pair.one], by_name[pair.other]]) for pair in decided]
    for verdict, what in (("no evidence", "No evidence of a difference"), ("too few groups", "Too few groups to tell")):
        if count := sum(pair.verdict == verdict for pair in comparison.pairs):
            sentences.append(f"{what}: {count_of(count, 'pair')}.")
    return sentences


def _verdict(pair: Pair, methods: list[Method]) -> str:
    if min(len(method.runs) for method in methods) == 1:
        return f"Of these two trained models, {pair.one} is {pair.verdict} than {pair.other} (p = {pair.p:.4f})."
    return f"{pair.one} is {pair.verdict} than {pair.other} (p = {pair.p:.4f})."
