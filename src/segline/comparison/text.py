"""A comparison in words and tables: for the terminal, for Markdown and for LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import mean, stdev

from segline import tables
from segline.comparison.compare import Comparison
from segline.comparison.methods import Method
from segline.comparison.statistics import Pair
from segline.words import count_of

#: Pairs in a table on the terminal at most.
_SAID = 10
#: Methods that a sentence names at most.
_NAMED = 5


def said(comparison: Comparison, style: str = "plain") -> str:
    """Tables, verdicts and what to know of them: `plain`, `markdown` or `latex`."""
    cases, groups = count_of(len(comparison.names), "case"), count_of(comparison.num_groups, "group")
    parts = [
        _prose(
            [
                f"{cases} in {groups} of the {comparison.split} part; {comparison.metric} is a mean over "
                f"{'' if '/' in comparison.metric else 'classes, then '}cases, then groups, ± deviation over runs"
            ],
            style,
        ),
        method_table(comparison, style),
    ]
    if comparison.pairs:
        if style != "plain" or len(comparison.pairs) <= _SAID:
            parts.append(pair_table(comparison, style))
        else:
            parts.append(f"A page has all {len(comparison.pairs)} pairs: output=compare.html")
        parts.append(_prose(verdicts(comparison), style))
    return "\n\n".join([*parts, *(_prose([note], style) for note in comparison.notes)])


def _prose(sentences: Sequence[str], style: str) -> str:
    """Sentences, one a line; comments in LaTeX, where they stand between tables."""
    return "\n".join(f"% {one}" if style == "latex" else one for one in sentences)


def method_table(comparison: Comparison, style: str = "plain") -> str:
    """A row for each method: its score, a mean ± deviation over seeds, and what it took."""
    return tables.rendered(method_rows(comparison), style)


def pair_table(comparison: Comparison, style: str = "plain") -> str:
    """A row for each pair: the difference with its interval, the test, and the verdict."""
    return tables.rendered(pair_rows(comparison), style)


def method_rows(comparison: Comparison) -> list[list[str]]:
    """Cells of `method_table`, the head first."""
    rows = []
    for method in comparison.methods:
        known = comparison.known(method)
        spread = f" ± {stdev(known):.4f}" if len(known) > 1 else ""
        costs = [_cost(method, "weights", 1e6, 2), _cost(method, "steps", 1, 0), _cost(method, "seconds", 60, 1)]
        rows.append([method.name, str(len(method.runs)), f"{mean(known):.4f}{spread}" if known else "–", *costs])
    head = ["Method", "Runs", comparison.metric, "Million weights", "Steps", "Minutes"]
    return [head, *rows]


def _cost(method: Method, name: str, unit: float, digits: int) -> str:
    """The mean over a method's runs; a dash where it is not known."""
    values = [run.costs[name] / unit for run in method.runs if name in run.costs]
    return f"{mean(values):,.{digits}f}" if values else "–"


def pair_rows(comparison: Comparison) -> list[list[str]]:
    """Cells of `pair_table`, the head first."""
    rows = [["Pair", "Difference", "95 %", "p", "Wins/ties/losses", "Verdict on trained models"]]
    rows += [
        [
            f"{pair.one} – {pair.other}",
            f"{pair.difference:+.4f}" if pair.num_groups else "–",
            f"{pair.low:+.4f} to {pair.high:+.4f}" if pair.low == pair.low else "–",
            _p(pair.p),
            f"{pair.wins}/{pair.ties}/{pair.losses}",
            pair.verdict,
        ]
        for pair in comparison.pairs
    ]
    return rows


def _p(p: float) -> str:
    return "–" if p != p else f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def verdicts(comparison: Comparison) -> list[str]:
    """What is better, in words: of the best method or, where all are compared with one, of that one."""
    pivot = comparison.against or comparison.methods[0].name
    about = [pair for pair in comparison.pairs if pivot in (pair.one, pair.other)]
    named = {
        verdict: [pair for pair in about if pair.verdict == verdict]
        for verdict in dict.fromkeys(p.verdict for p in about)
    }
    heads = {
        "better": f"Better than {pivot}" if comparison.against else f"{pivot} is better than",
        "worse": f"Worse than {pivot}" if comparison.against else f"{pivot} is worse than",
        "no evidence": f"No evidence of a difference from {pivot}",
        "too few groups": f"Too few groups to tell from {pivot}",
    }
    sentences = []
    for verdict in (verdict for verdict in heads if verdict in named):
        decided = verdict in ("better", "worse")
        others = [_other(pair, pivot) for pair in named[verdict]]
        if len(others) > _NAMED:
            others = (
                [f"all {len(others)} others"]
                if len(others) == len(comparison.methods) - 1
                else [*others[:_NAMED], f"{len(others) - _NAMED} more"]
            )
        doubted = decided and any(_may_turn_round(comparison, pair) for pair in named[verdict])
        most = f" (p ≤ {max(pair.p for pair in named[verdict]):.2g})" if decided else ""
        sentences.append(
            f"{'Of these trained models: ' if doubted else ''}{heads[verdict]}: {'; '.join(others)}{most}."
        )
    if rest := [pair for pair in comparison.pairs if pair not in about]:
        sentences.append(
            f"Of the {len(rest)} other pairs {sum(p.verdict in ('better', 'worse') for p in rest)} differ."
        )
    return sentences


def _may_turn_round(comparison: Comparison, pair: Pair) -> bool:
    """Whether other seeds could say otherwise: scores of runs of both overlap, or are so few that chance alone may keep them apart.

    Of equal methods with `n` and `m` runs all runs of one are above all of the other, or below, in 2 of `n + m` over `n` cases: a third of
    those with two seeds each, 3 % with four. As of the tests of pairs, this is corrected for their number.
    """
    methods = [method for method in comparison.methods if method.name in (pair.one, pair.other)]
    one, other = map(comparison.known, methods)
    n, m = (min(method.num_repeats, len(comparison.known(method))) for method in methods)
    by_chance = 2 / comb(n + m, n) * len(comparison.pairs) > 0.05
    return by_chance or not (min(one) > max(other) or min(other) > max(one))


def _other(pair: Pair, pivot: str) -> str:
    return pair.other if pair.one == pivot else pair.one
