"""Made-up runs, put side by side: who is one method, what is compared, what is said and refused."""

import re
import shlex
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import write_run

from segline.cli import main as cli
from segline.comparison.command import main, read
from segline.comparison.compare import Comparison, compare_runs, mean_of, score_classes
from segline.comparison.methods import Method, differing, find_methods
from segline.comparison.panels import draw_panels
from segline.comparison.runs import Cases, Run, find_runs
from segline.comparison.statistics import Pair, compare
from segline.comparison.text import method_rows, method_table, pair_table, said, verdicts
from segline.tables import digest, write_cases, write_json

HARD = np.random.default_rng(0).uniform(0.4, 0.8, 12)


def nuclei(gain: float, noise: float = 0.0, seed: int = 0) -> dict[str, list[float | None]]:
    """Scores of the same cases, better by so much."""
    return {"nucleus": list(HARD + gain + noise * np.random.default_rng(seed).normal(size=len(HARD)))}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two networks with three seeds each, and one that is better."""
    for seed in range(3):
        for model, gain in (("unet", 0.0), ("attention_unet", 0.1)):
            costs = {"weights": 2e6, "steps": 100 + seed, "seconds": 90.0}
            folder = tmp_path / "runs" / f"{seed}_{model}"
            write_run(folder, nuclei(gain, 0.01, seed), seed=seed, choices={"model": model}, costs=costs)
    return tmp_path / "runs"


def test_runs_that_differ_by_their_seeds_are_one_method(runs: Path) -> None:
    comparison = compare_runs([str(runs)])
    assert [(method.name, method.seeds) for method in comparison.methods] == [
        ("attention_unet", [0, 1, 2]),
        ("unet", [0, 1, 2]),
    ]
    (pair,) = comparison.pairs
    assert pair.difference == pytest.approx(0.1)
    assert (pair.verdict, pair.wins, pair.num_groups) == ("better", 12, 12)
    assert "Of these trained models: attention_unet is better than: unet (p ≤ 0.00049)." in said(comparison)
    assert "Verdict on trained models" in said(comparison)


@pytest.mark.parametrize(
    ("one", "other", "doubted"), [(2, 2, True), (3, 3, True), (2, 5, True), (3, 5, False), (4, 4, False)]
)
def test_few_runs_that_chance_may_keep_apart_are_trained_models(
    tmp_path: Path, one: int, other: int, doubted: bool
) -> None:
    for name, gain, seeds in (("a", 0.1, one), ("b", 0.0, other)):
        for seed in range(seeds):
            write_run(tmp_path / f"{name}{seed}", nuclei(gain, 0.01, seed), seed=seed, choices={"loss": name})
    assert ("Of these trained models: a is better" in said(compare_runs([str(tmp_path)]))) == doubted


@pytest.mark.parametrize("num_methods", [2, 3])
@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_false_claims_about_methods_are_as_rare_as_stated(num_methods: int, seeds: int) -> None:
    """Of equal methods, each of whose runs is shifted by its seed: without a look at how few they are, 2 each give a third of claims."""
    rng, claims, folder = np.random.default_rng(seeds), 0, Path("run")
    methods = [
        Method(str(m), {}, [Run(folder / f"{m}{seed}", {}) for seed in range(seeds)]) for m in range(num_methods)
    ]
    for method in methods:
        for seed, run in enumerate(method.runs):
            run.__dict__["settings"] = {"seed": seed}
    for _ in range(1000):
        reached = {run.folder: float(rng.normal()) for method in methods for run in method.runs}
        ranked = sorted(methods, key=lambda method: -mean_of([reached[run.folder] for run in method.runs]))
        # Cases enough show any difference of the runs at hand.
        pairs = [
            Pair(one.name, other.name, 0.1, 0.1, 0.1, 0.0, 100, 0, 0, "better")
            for one, other in combinations(ranked, 2)
        ]
        found = Comparison("dice_case", "test", ranked, [], [], np.zeros(0), reached, {}, pairs, None, [])
        claims += any("is better than" in one and "trained models" not in one for one in verdicts(found))
    assert claims <= 1000 * (0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5)


def test_seeds_are_averaged_for_each_case_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"nucleus": [0.2, 0.4]}, seed=0)
    write_run(tmp_path / "b", {"nucleus": [0.4, 0.8]}, seed=1)
    comparison = compare_runs([str(tmp_path)])
    assert comparison.scores.tolist() == [pytest.approx([0.3, 0.6])]
    assert "0.4500 ± 0.2121" in method_table(comparison)  # of 0.3 and 0.6
    assert "no test can show" not in " ".join(comparison.notes)  # there is nothing that it could be compared with


def test_a_group_counts_once_in_scores_and_differences(tmp_path: Path) -> None:
    groups = ["scene"] * 3 + ["other"]
    write_run(tmp_path / "a", {"road": [0.2, 0.2, 0.2, 0.8]}, groups=groups)
    write_run(tmp_path / "b", {"road": [0.4, 0.4, 0.4, 0.8]}, groups=groups, choices={"model": "fcn"})
    comparison = compare_runs([str(tmp_path)])
    assert comparison.reached == {tmp_path / "a": pytest.approx(0.5), tmp_path / "b": pytest.approx(0.6)}
    assert comparison.pairs[0].difference == pytest.approx(0.1)
    assert "There are 2 groups; with fewer than 6 no test can show a difference of 2 methods." in comparison.notes


def test_one_seed_each_speaks_of_trained_models(tmp_path: Path) -> None:
    write_run(tmp_path / "a", nuclei(0.1))
    write_run(tmp_path / "b", nuclei(0.0), choices={"loss": "ce"})
    assert "Of these trained models: dice_ce is better than: ce (p ≤ 0.00049)." in said(compare_runs([str(tmp_path)]))


def test_methods_whose_runs_overlap_are_spoken_of_as_trained_models(tmp_path: Path) -> None:
    for seed, (one, other) in enumerate([(0.2, 0.0), (0.0, 0.1)]):  # better in the mean, but not with each seed
        write_run(tmp_path / f"a{seed}", nuclei(one), seed=seed)
        write_run(tmp_path / f"b{seed}", nuclei(other), seed=seed, choices={"loss": "ce"})
    assert "Of these trained models: dice_ce is better than: ce" in said(compare_runs([str(tmp_path)]))


def test_folds_are_runs_of_one_method_and_other_ones_than_whole_trainings(tmp_path: Path) -> None:
    for fold in range(2):
        write_run(tmp_path / f"fold {fold}", nuclei(0), data={"fold": [fold, 2]})
    write_run(tmp_path / "whole", nuclei(0), data={"fold": None})
    assert [(m.name, len(m.runs)) for m in compare_runs([str(tmp_path)]).methods] == [("folds=2", 2), ("folds=null", 1)]


def test_what_is_rightly_found_absent_counts_where_another_run_finds_it() -> None:
    right, wrong = (Cases(["x", "y", "z"], ["g"] * 3, {"dice/a": np.array(v)}) for v in (
        [np.nan, np.nan, 0.5], [0.0, np.nan, 0.6],
    ))  # fmt: skip
    scores = score_classes([right, wrong], ["x", "y", "z"], "dice_case")["a"]
    assert scores == pytest.approx(np.array([[1.0, np.nan, 0.5], [0.0, np.nan, 0.6]]), nan_ok=True)


def test_a_case_that_a_run_has_not_seen_has_no_score() -> None:
    tables = [Cases(["x"], ["g"], {"dice/a": np.array([0.5])}), Cases(["y"], ["g"], {"dice/a": np.array([0.25])})]
    scores = score_classes(tables, ["x", "y"], "dice_case")["a"]
    assert scores == pytest.approx(np.array([[0.5, np.nan], [np.nan, 0.25]]), nan_ok=True)


def evaluate(run: Path, surface: list[float | None], dice: list[float | None] | None = None, name: str = "val") -> None:
    """Leave what `src/eval.py` does, in another order than that of training."""
    rows = [
        {"split": "val", "case": f"case {k}", "group": f"case {k}", "surface_dice/nucleus": value}
        | {"dice/nucleus": dice[k] if dice else value}
        for k, value in reversed(list(enumerate(surface)))
    ]
    (run / "eval" / name).mkdir(parents=True, exist_ok=True)
    write_cases(run / "eval" / name / "cases.parquet", rows)
    write_json(run / "eval" / name / "summary.json", {"run": digest(run / "cases.parquet")})


def test_what_evaluation_alone_measures_is_compared(tmp_path: Path) -> None:
    one: list[float | None] = [0.5, None, 0.5, 0.5, 0.5, 0.5, 0.4]
    other: list[float | None] = [0.8, 0.0, 0.8, 0.8, 0.8, 0.8, 0.7]
    write_run(tmp_path / "a", {"nucleus": one})
    write_run(tmp_path / "b", {"nucleus": other}, choices={"model": "fcn"})
    evaluate(tmp_path / "a", [0.9, None, 0.8, 0.7, 0.6, 0.7, None], one)
    evaluate(tmp_path / "b", [0.5, 0.0, 0.6, 0.6, 0.5, 0.4, 0.3], other)
    comparison = compare_runs([str(tmp_path)], "surface_dice")
    assert [method.name for method in comparison.methods] == ["unet", "fcn"]  # the other way round than by Dice
    of_case = dict(zip(comparison.names, comparison.scores.T.tolist(), strict=True))
    assert of_case.pop("case 1") == [1.0, 0.0]  # nothing is there: one finds nothing, and the other invents something
    # Something is there, and one has no surface of it that could be measured: that is no merit.
    assert of_case.pop("case 6") == [pytest.approx(np.nan, nan_ok=True), 0.3]
    assert of_case == {
        "case 0": [0.9, 0.5],
        "case 2": [0.8, 0.6],
        "case 3": [0.7, 0.6],
        "case 4": [0.6, 0.5],
        "case 5": [0.7, 0.4],
    }
    assert [(pair.verdict, pair.num_groups) for pair in comparison.pairs] == [("better", 6)]
    assert compare_runs([str(tmp_path)]).methods[0].name == "fcn"


def test_evaluations_are_compared_by_the_names_of_their_folders(tmp_path: Path) -> None:
    for name, model, flipped in (("a", "unet", 0.7), ("b", "fcn", 0.6)):
        write_run(tmp_path / name, {"nucleus": [0.1] * 6}, choices={"model": model})
        evaluate(tmp_path / name, [flipped] * 6, name="val_tta-flips")
        evaluate(tmp_path / name, [flipped] * 6)
    comparison = compare_runs([str(tmp_path)], split="val_tta-flips")
    assert list(comparison.reached.values()) == [pytest.approx(0.7), pytest.approx(0.6)]
    assert any("flattered" in note for note in comparison.notes)
    with pytest.raises(ValueError, match="not of the evaluation val_tta-flips"):
        draw_panels(comparison)
    with pytest.raises(ValueError, match="no cases of split=val_flips; all runs have val, val_tta-flips"):
        compare_runs([str(tmp_path)], split="val_flips")


@pytest.mark.parametrize("name", ["val", "val_tta-flips"])
def test_an_evaluation_of_earlier_weights_is_refused(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "a", {"nucleus": [0.5] * 6})
    evaluate(tmp_path / "a", [0.9] * 6, name=name)
    assert compare_runs([str(tmp_path)], "surface_dice", name).scores.tolist() == [[pytest.approx(0.9)] * 6]
    write_run(
        tmp_path / "b", {"nucleus": [0.5, 0.5, 0.5, 0.5, 0.5, 0.51]}
    )  # what it reached after it was trained further
    (tmp_path / "b" / "cases.parquet").replace(tmp_path / "a" / "cases.parquet")
    with pytest.raises(ValueError, match=f"a/eval/{name} is of weights that the run no longer has"):
        compare_runs([str(tmp_path / "a")], "surface_dice", name)


def test_an_evaluation_of_other_cases_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"nucleus": [0.5] * 6})
    evaluate(tmp_path / "a", [0.9] * 5)
    with pytest.raises(ValueError, match="is of other cases than the run's own"):
        compare_runs([str(tmp_path)], "surface_dice")


def test_surfaces_of_pixels_of_several_sizes_need_one_tolerance(tmp_path: Path) -> None:
    for spacing in (1.0, 2.0):
        folder = write_run(tmp_path / str(spacing), {"nucleus": [0.5] * 6}, data={"spacing_mm": [spacing] * 3})
        for name in ("val", "val_tolerance-2"):
            evaluate(folder, [0.9] * 6, name=name)
    with pytest.raises(
        ValueError, match=r"\[1.0, 1.0, 1.0\] and \[2.0, 2.0, 2.0\]; evaluate all runs with one tolerance"
    ):
        compare_runs([str(tmp_path)], "surface_dice")
    assert len(compare_runs([str(tmp_path)], "surface_dice", "val_tolerance-2").pairs) == 1


def test_cases_too_large_for_surfaces_are_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"nucleus": [0.5] * 6})
    evaluate(tmp_path / "a", [0.5] * 6)
    write_cases(
        tmp_path / "a" / "eval" / "val" / "cases.parquet",
        [{"split": "val", "case": f"case {k}", "group": "g"} for k in range(6)],
    )
    with pytest.raises(ValueError, match="a/eval/val has no surface_dice of any case, as it is of too large ones"):
        compare_runs([str(tmp_path)], "surface_dice")


def test_how_an_evaluation_is_made_is_said_as_a_shell_takes_it(tmp_path: Path) -> None:
    for name in ("it's,a=b", "other"):
        write_run(tmp_path / name, {"nucleus": [0.5] * 6})
    with pytest.raises(ValueError, match=r"measured by python src/eval\.py") as raised:
        compare_runs([str(tmp_path / "it's,a=b")], "surface_dice")
    said = str(raised.value).partition("python ")[2]
    assert shlex.split(said) == ["src/eval.py", "-m", f"checkpoint={tmp_path}/it's,a=b", "split=val"]
    with pytest.raises(ValueError, match=re.escape(f"-m 'checkpoint={tmp_path}/*' split=val")):
        compare_runs([str(tmp_path)], "surface_dice")


@pytest.mark.parametrize("split", ["train", "all_tta-flips"])
def test_scores_of_what_was_trained_on_are_doubted(tmp_path: Path, split: str) -> None:
    write_run(tmp_path / "a", {"nucleus": [0.5] * 6})
    evaluate(tmp_path / "a", [0.9] * 6, name=split)
    assert any("trained on" in note for note in compare_runs([str(tmp_path)], split=split).notes)


def test_the_same_seeds_in_another_order_are_no_difference() -> None:
    scores = np.random.default_rng(0).uniform(size=(3, 40))
    one, other = ((a + b + c) / 3 for a, b, c in (scores, scores[::-1]))
    assert (one != other).any()
    (pair,) = compare({"one": one, "other": other}, range(40))
    assert (pair.wins, pair.ties, pair.losses, pair.p, pair.verdict) == (0, 40, 0, 1.0, "no evidence")


def test_means_over_classes_leave_out_the_background_and_absent_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"cat": [0.2, None], "dog": [0.4, 0.5]})
    assert compare_runs([str(tmp_path)]).scores.tolist() == [pytest.approx([0.3, 0.5])]
    assert compare_runs([str(tmp_path)], "dice_case/dog").scores.tolist() == [pytest.approx([0.4, 0.5])]
    assert compare_runs([str(tmp_path)], "iou_case").scores.tolist() == [pytest.approx([0.15, 0.25])]
    assert compare_runs([str(tmp_path)], "dice_case/background").scores.tolist() == [pytest.approx([0.99, 0.99])]


def test_a_choice_stands_for_what_comes_with_it(tmp_path: Path) -> None:
    unet = {"_target_": "UNet", "channels": [8, 16], "in_channels": 3}
    write_run(tmp_path / "a", nuclei(0), model=unet)
    write_run(tmp_path / "b", nuclei(0), model={"_target_": "FCN", "stride": 8}, choices={"model": "fcn"})
    runs, _ = find_runs([str(tmp_path)])
    assert differing(runs) == ["model"]
    write_run(tmp_path / "c", nuclei(0), model={**unet, "channels": [16, 32]})
    runs, _ = find_runs([str(tmp_path)])
    assert differing(runs) == ["model.channels", "model"]
    assert [method.name for method in find_methods(runs)] == [
        "unet, channels=[8,16]",
        "fcn",
        "unet, channels=[16,32]",
    ]


def test_an_ablation_is_named_by_what_was_changed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", nuclei(0), optimizer={"lr": 0.1}, choices={"data/augment": "full"})
    write_run(tmp_path / "b", nuclei(0), optimizer={"lr": 0.2}, choices={"data/augment": "full"})
    write_run(tmp_path / "c", nuclei(0), optimizer={"lr": 0.1}, choices={"data/augment": "none"})
    assert [m.name for m in find_methods(find_runs([str(tmp_path)])[0])] == ["base", "lr=0.2", "augment=none"]
    assert (
        "Where a name does not say otherwise: optimizer.lr=0.1, data.augment=full."
        in compare_runs([str(tmp_path)]).notes
    )


def test_networks_and_losses_are_always_named_and_usual_settings_never(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"choices": {"loss": "focal"}},
        {"choices": {"data/augment": "none"}},
        {"optimizer": {"lr": 0.2}},
        {"choices": {"model": "residual_unet"}, "model": {"heads": True}},
        {"choices": {"model": "residual_unet"}, "model": {"heads": False}, "optimizer": {"lr": 0.2}},
    ]
    for number, change in enumerate(changes):
        choices = {"data/augment": "full", **change.pop("choices", {})}
        write_run(tmp_path / str(number), nuclei(0), choices=choices, **{"optimizer": {"lr": 0.1}, **change})
    assert [m.name for m in find_methods(find_runs([str(tmp_path)])[0])] == [
        "unet, dice_ce",
        "unet, focal",
        "unet, dice_ce, augment=none",
        "unet, dice_ce, lr=0.2",
        "residual_unet, dice_ce, heads=true",  # there are as many without, and other networks have none
        "residual_unet, dice_ce, lr=0.2, heads=false",
    ]


def test_names_that_nobody_would_read_are_those_of_runs(tmp_path: Path) -> None:
    for name, word in {"a": "first", "b": "second"}.items():
        data = {key: f"{word} {key} of many" for key in ("images", "masks", "group", "burn", "origin_of_all")}
        write_run(tmp_path / name, nuclei(0), data=data, choices={"model": "unet" if name == "a" else "fcn"})
    assert [m.name for m in find_methods(find_runs([str(tmp_path)])[0])] == ["unet (a)", "fcn (b)"]


def test_methods_of_a_grid_are_named_in_full(tmp_path: Path) -> None:
    for lr, augment, model in product([0.1, 0.2], ["full", "none"], ["unet", "fcn"]):
        choices = {"data/augment": augment, "model": model}
        write_run(tmp_path / f"{lr}{augment}{model}", nuclei(0), optimizer={"lr": lr}, choices=choices)
    comparison = compare_runs([str(tmp_path)])
    assert {m.name for m in comparison.methods} == {
        f"{model}, lr={lr}, augment={augment}"
        for lr, augment, model in product([0.1, 0.2], ["full", "none"], ["unet", "fcn"])
    }
    assert not any("Where a name" in note for note in comparison.notes)


def test_where_files_lie_and_what_is_logged_makes_no_other_method(tmp_path: Path) -> None:
    write_run(tmp_path / "a", nuclei(0), logger={"wandb": 1}, data={"num_workers": 1})
    write_run(tmp_path / "here" / "b", nuclei(0), logger={}, data={"num_workers": 2})
    assert len(find_methods(find_runs([str(tmp_path)])[0])) == 1


def test_the_test_part_is_compared_where_all_have_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", nuclei(0), split="test")
    write_run(tmp_path / "b", nuclei(0), split="test", choices={"loss": "ce"})
    comparison = compare_runs([str(tmp_path)])
    assert comparison.split == "test"
    assert not any("flattered" in note for note in comparison.notes)
    write_run(tmp_path / "c", nuclei(0), choices={"loss": "focal"})
    with pytest.raises(ValueError, match="a has no cases of split=val; it has test"):
        compare_runs([str(tmp_path)])


def test_places_are_runs_sweeps_and_patterns(runs: Path, tmp_path: Path) -> None:
    one = write_run(tmp_path / "more" / "0_lr=[0.1]", nuclei(0))
    assert [run.folder for run in find_runs([str(one)])[0]] == [one]  # [0.1] is a pattern, too
    assert len(find_runs([str(runs / "?_unet"), str(runs / "0_unet")])[0]) == 3
    assert len(find_runs([str(tmp_path)])[0]) == 7
    write_run(tmp_path / "runs" / "10_unet", nuclei(0), finished=False)
    assert [run.name for run in find_runs([str(runs)])[0]][-2:] == ["2_unet", "10_unet"]
    assert "Left out, for they have not ended: 10_unet." in compare_runs([str(runs)]).notes


def test_what_holds_no_run_is_left_out_and_said(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "stopped_sweep").mkdir()
    places = [str(tmp_path / "mlflow.db"), *sorted(map(str, runs.iterdir())), str(tmp_path / "stopped_sweep")]
    left = f"Left out, for they hold no run: {places[0]}, {places[-1]}."
    assert left in compare_runs(places).notes
    with pytest.raises(ValueError, match="stopped_sweep holds no run"):
        compare_runs([places[0], places[-1]])


def test_runs_of_different_data_or_groups_are_doubted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", nuclei(0))
    write_run(tmp_path / "b", nuclei(0), choices={"data": "other"}, groups=["one"] * len(nuclei(0)["nucleus"]))
    notes = " ".join(compare_runs([str(tmp_path)]).notes)
    assert "Runs are of different data (cells, other): cases of one name are taken for the same." in notes
    assert "Runs group their cases differently (data.group)" in notes


def test_a_run_without_a_score_is_a_dash_and_costs_the_others_nothing(tmp_path: Path) -> None:
    for seed, rare in enumerate([[None, None], [0.5, 0.5], [0.7, 0.7]]):
        write_run(tmp_path / f"a{seed}", {"rare": rare, "often": [0.5, 0.6]}, seed=seed, split="test")
    write_run(tmp_path / "b", {"rare": [None, None], "often": [0.5, 0.6]}, split="test", choices={"loss": "ce"})
    rows = method_rows(
        compare_runs([str(tmp_path / "a0"), str(tmp_path / "a1"), str(tmp_path / "a2")], "dice_case/rare")
    )
    assert rows[1][1:3] == [
        "3",
        "0.7333 ± 0.2517",
    ]  # nothing is found, as there is nothing: right, where others find some
    alone = method_rows(compare_runs([str(tmp_path / "b")], "dice_case/rare"))
    assert alone[1][2] == "–"


def test_a_paper_gets_every_pair_and_the_terminal_a_hint(tmp_path: Path) -> None:
    for k in range(6):
        write_run(tmp_path / str(k), nuclei(k), optimizer={"lr": 0.1 * k})
    comparison = compare_runs([str(tmp_path)])
    assert "A page has all 15 pairs: output=compare.html" in said(comparison)
    _, _, rows = said(comparison, "markdown").partition("| Pair")
    assert rows.count("better |") == 15


def test_of_very_many_methods_the_best_are_tested(tmp_path: Path) -> None:
    for k in range(35):
        write_run(tmp_path / str(k), nuclei(0.001 * k, 0.001, k), optimizer={"lr": 0.1 * k})
    comparison = compare_runs([str(tmp_path)])
    best = [method.name for method in comparison.methods[:30]]
    assert len(comparison.pairs) == 30 * 29 / 2
    assert {name for pair in comparison.pairs for name in (pair.one, pair.other)} == set(best)
    assert comparison.pairs == compare(dict(zip(best, comparison.scores, strict=False)), comparison.groups)
    assert "Of 35 methods the 30 with the highest scores are tested, each with each (435 pairs," in said(comparison)
    assert "all 29 others" not in said(comparison)
    one_against_all = compare_runs([str(tmp_path)], against=str(tmp_path / "0"))
    assert len(one_against_all.pairs) == 34
    assert "are tested" not in " ".join(one_against_all.notes)


def test_a_folder_is_found_however_its_path_is_written(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs.parent)
    for name in (
        "unet",
        "0_unet",
        "0_unet/",
        "runs/0_unet",
        "./runs/0_unet/",
        str(runs / "0_unet"),
        "runs/../runs/2_unet",
    ):
        assert compare_runs(["runs"], against=name).against == "unet"
        assert compare_runs([str(runs)], against=name).against == "unet"


def test_where_each_class_is_some_background_one_must_be_named() -> None:
    tables = [Cases(["x"], ["g"], {f"dice/{name}": np.array([0.5]) for name in ("cat", "dog")})]
    with pytest.raises(ValueError, match=r"classes cat, dog is the background of some run.*metric=dice_case/cat"):
        score_classes(tables, ["x"], "dice_case", {"cat", "dog"})


@pytest.mark.parametrize(
    ("places", "settings", "said"),
    [
        (["nowhere"], {}, "nowhere does not exist; expected folders that src/train.py has left"),
        (["."], {}, ". holds no run"),
        (["runs"], {"metric": "accuracy"}, "'accuracy'; expected one of dice_case, iou_case, surface_dice, boundary_iou, or one"),
        (["runs"], {"metric": "hd95/nucleus"}, "infinite where a class is missed.* metric=surface_dice/nucleus is 0 there"),
        (["runs"], {"metric": "surface_dice"}, "has no surface_dice of its cases .6 of 6 runs have none.; it is measured by"),
        (["runs"], {"metric": "dice_case/cell"}, "there is no class 'cell'; expected one of background, nucleus"),
        (["runs"], {"split": "test"}, "has no cases of split=test; all runs have val"),
        (["runs"], {"against": "vnet"}, "there is no method 'vnet'; expected one of attention_unet; unet, or a run's folder"),
        (["left"], {}, "none of 1 run has ended"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    runs: Path, monkeypatch: pytest.MonkeyPatch, places: list[str], settings: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(runs.parent)
    (Path("empty")).mkdir()
    write_run(Path("left") / "run", nuclei(0), finished=False)
    if places == ["."]:
        monkeypatch.chdir("empty")
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        compare_runs(places, **settings)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in ("a: [", "[]", "model: unet"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"config.yaml (cannot be read|is not the config of a run)"):
            find_runs([str(tmp_path)])


@pytest.fixture
def comparison(runs: Path) -> Comparison:
    return compare_runs([str(runs)], against="unet")


def test_tables_can_be_pasted_into_a_paper(comparison: Comparison) -> None:
    assert method_table(comparison, "markdown").splitlines()[2].startswith("| attention_unet |    3 |")
    plain = method_table(comparison)
    assert plain.splitlines()[2].split("  ")[0] == "attention_unet"  # the best first
    assert "2.00" in plain
    assert "101" in plain  # steps
    assert "1.5" in plain  # minutes
    latex = pair_table(comparison, "latex")
    assert r"attention\_unet -- unet & +0.1000 & +0.1000 to +0.1000 & 0.0005 & 12/0/0 & better \\" in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrr}")


def test_the_command_prints_and_writes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "table.tex"
    monkeypatch.setattr("sys.argv", ["compare", str(runs), f"against={runs}/0_unet", f"output={output}"])
    cli("compare")
    printed = capsys.readouterr().out
    assert "attention_unet – unet" in printed
    assert printed.endswith(f"{output}\n")
    lines = output.read_text().splitlines()
    assert lines[0].startswith("% 12 cases in 12 groups of the val part")
    assert lines[2] == r"\begin{tabular}{lrrrrr}"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Compare runs"),
        (["--help"], 0, "against=METHOD"),
        (["metric=dice_case"], 1, "no runs to compare; name their folders, such as runs/"),
        (["x", "trust=[mine]"], 1, "there is none; set output=compare.html, or leave it out"),
        (["x", "output=table.doc"], 1, "output=table.doc: expected a name that ends in .html, .md or .tex"),
    ],
)
def test_the_command_answers_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli("compare")
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert "Traceback" not in printed.err


def test_a_misspelt_setting_is_not_taken_for_a_folder() -> None:
    with pytest.raises(ValueError, match=r"metrics=iou_case is no folder and no setting. Did you mean metric"):
        read(["runs", "metrics=iou_case"])


def test_a_run_has_no_score_of_a_class_that_it_does_not_know() -> None:
    values = np.array([0.5, 0.7])
    one, other = (Cases(["x", "y"], ["g"] * 2, {f"dice/{name}": values}) for name in ("front", "whole"))
    scores = score_classes([one, other], ["x", "y"], "dice_case")
    assert scores["front"] == pytest.approx(np.array([[0.5, 0.7], [np.nan, np.nan]]), nan_ok=True)
    assert scores["whole"] == pytest.approx(np.array([[np.nan, np.nan], [0.5, 0.7]]), nan_ok=True)


def test_other_classes_and_backgrounds_are_said_and_give_the_same_in_any_order(tmp_path: Path) -> None:
    for name, labels in (("a", {"background": "cat"}), ("b", {"background": None})):
        write_run(
            tmp_path / name, {"cat": [0.2, 0.4], "dog": [0.4, 0.5]}, data={"labels": labels}, choices={"loss": name}
        )
    one, other = (compare_runs([str(tmp_path / name) for name in order]) for order in ("ab", "ba"))
    assert one.reached == other.reached
    assert set(one.of_class) == {"dog", "background"}
    assert any("different classes or backgrounds" in note for note in one.notes)
    write_run(tmp_path / "c", {"cat": [0.2, 0.4]}, choices={"loss": "c"})
    write_run(tmp_path / "d", {"dog": [0.2, 0.4]}, choices={"loss": "d"})
    of_other_classes = compare_runs([str(tmp_path / name) for name in "cd"])
    assert any("different classes or backgrounds" in note for note in of_other_classes.notes)


def test_the_same_training_twice_is_not_two_seeds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, nuclei(0.1), seed=0)
        write_run(tmp_path / f"{name}2", nuclei(0.0), seed=0, choices={"loss": "ce"})
    comparison = compare_runs([str(tmp_path)])
    assert [(len(m.runs), m.num_repeats) for m in comparison.methods] == [(2, 1), (2, 1)]
    assert "Of these trained models: dice_ce is better than: ce" in said(comparison)
    assert "Of dice_ce some runs have one seed: they count as runs, and not as seeds." in comparison.notes


def test_the_best_is_first_even_where_a_fold_has_no_case_of_the_class(tmp_path: Path) -> None:
    for name, score in (("a", 0.2), ("b", 0.6), ("c", 0.4)):
        for fold, rare in enumerate(([score, score], [None, None])):
            write_run(
                tmp_path / f"{name}{fold}", {"rare": rare, "cell": [0.5, 0.5]}, data={"fold": [fold, 2]}, choices={"loss": name},
                groups=[f"{fold} {k}" for k in range(2)],
            )  # fmt: skip
    comparison = compare_runs([str(tmp_path)], "dice_case/rare")
    assert [method.name for method in comparison.methods] == ["b", "c", "a"]


def test_a_small_p_is_not_said_to_be_nothing(tmp_path: Path) -> None:
    many = list(np.random.default_rng(0).uniform(0.4, 0.8, 16))
    for name, gain in (("a", 0.1), ("b", 0.0)):
        write_run(tmp_path / name, {"nucleus": [value + gain for value in many]}, choices={"loss": name})
    assert "<0.0001" in pair_table(compare_runs([str(tmp_path)]))


def test_a_table_for_a_paper_is_written_into_a_new_folder(runs: Path, tmp_path: Path) -> None:
    main([str(runs), f"output={tmp_path / 'new' / 'table.md'}"])
    assert "| attention_unet |" in (tmp_path / "new" / "table.md").read_text()
