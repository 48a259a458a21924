"""One job in this process: budgets, schedules, what a resume takes from the checkpoint and what from the config."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from segline import job, report, tables
from segline.averaging import WeightAverage
from segline.budget import LearningRate, read_budget
from segline.callbacks import Checkpoints
from segline.checkpoints import BEST, RESUME, read
from segline.config import compose
from segline.losses.entropy import CrossEntropyLoss
from segline.losses.loss import Loss
from segline.models.unet import UNet
from segline.schedules import Cosine

TINY = [
    "data=biomedical", "trainer=cpu", "trainer.precision=32", "logger=none", "callbacks.pictures=false", "model=unet",
    "model.channels=[2,4]", "data.steps_per_epoch=4", "data.batch_size=1", "data.num_workers=0", "data.window=[32,32]",
    "data.margin=[0,0]", "scheduler.warmup=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from segline.data.synthetic.biomedical import write_biomedical

    return write_biomedical(tmp_path_factory.mktemp("scenes") / "biomedical", count=10)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step."""
    seen: list[float] = []
    before = LearningRate.on_train_batch_start

    def watch(self: LearningRate, trainer: pl.Trainer, *rest: Any) -> None:
        before(self, trainer, *rest)
        seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(LearningRate, "on_train_batch_start", watch)
    return seen


def run(run_dir: Path, root: Path, *overrides: str) -> dict[str, Any]:
    config = OmegaConf.to_container(compose([*TINY, f"data.root={root}", *overrides]), resolve=True)
    run_dir.mkdir(exist_ok=True)
    chosen = dict(override.split("=", 1) for override in overrides if override.startswith(("data=", "model=", "loss=")))
    names = {"name": run_dir.name, "choices": {"data": "biomedical", "model": "unet", "loss": "dice_ce", **chosen}}
    OmegaConf.save(OmegaConf.create({"run": names, **config}), run_dir / "config.yaml")  # type: ignore[dict-item]
    job.run(run_dir / "config.yaml")
    return read(run_dir / RESUME)


@pytest.mark.slow
def test_a_budget_in_steps_ends_there_and_the_schedule_with_it(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    last = run(tmp_path / "run", few_scenes, "trainer.max_steps=6", "optimizer.lr=0.5")
    assert last["global_step"] == 6
    schedule = Cosine(floor=0.0, warmup=0.25)
    assert rates == pytest.approx([0.5 * schedule.factor(step / 6) for step in range(6)])
    assert [row["step"] for row in tables.read_rows(tmp_path / "run" / "metrics.csv")] == [4, 6]


@pytest.mark.slow
def test_a_rate_that_is_meant_for_another_batch_is_scaled_on_request(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    budget = [
        "trainer.max_steps=1",
        "data.batch_size=2",
        "trainer.accumulate_grad_batches=2",
        "scheduler=constant",
        "scheduler.warmup=0",
    ]
    run(tmp_path / "a", few_scenes, *budget, "optimizer.lr=0.01")
    run(tmp_path / "b", few_scenes, *budget, "optimizer.lr=0.01", "lr_batch_size=16")
    assert rates == pytest.approx([0.01, 0.01, 0.0025, 0.0025])  # two batches a step each


@pytest.mark.slow
def test_a_larger_budget_trains_on_where_the_smaller_one_ended(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    run(tmp_path / "run", few_scenes, "trainer.max_steps=6")  # in the middle of the second epoch
    last = run(tmp_path / "run", few_scenes, "trainer.max_steps=12", "resume=auto")
    assert last["global_step"] == 12
    assert len(rates) == 12
    rows = tables.read_rows(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == [4, 6, 10, 12]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_budget_in_time_ends_in_time_and_goes_on_at_the_time_spent(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    first = run(tmp_path / "run", few_scenes, "trainer.max_time=00:00:00:01", "data.steps_per_epoch=10000")
    steps = len(rates)
    assert rates[-1] < 0.1 * max(rates)
    spent = first["callbacks"]["Budget"]["elapsed"]
    assert 1.0 <= spent < 5.0
    run(tmp_path / "run", few_scenes, "trainer.max_time=00:00:00:01", "data.steps_per_epoch=10000", "resume=auto")
    assert len(rates) - steps <= 1


@pytest.mark.slow
def test_the_config_stands_above_the_options_that_a_checkpoint_brings_back(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    run(tmp_path / "run", few_scenes, "trainer.max_epochs=1", "optimizer.lr=0.1")
    run(
        tmp_path / "run",
        few_scenes,
        "trainer.max_epochs=2",
        "optimizer.lr=0.4",
        "resume=auto",
        "scheduler=constant",
        "scheduler.warmup=0",
    )
    assert max(rates[:4]) <= 0.1
    assert rates[4:] == pytest.approx([0.4] * 4)


@pytest.mark.slow
def test_a_schedule_scales_the_rate_of_every_part_of_a_network(
    tmp_path: Path, few_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    before = LearningRate.on_train_batch_start

    def watch(self: LearningRate, trainer: pl.Trainer, *rest: Any) -> None:
        before(self, trainer, *rest)
        seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(LearningRate, "on_train_batch_start", watch)
    monkeypatch.setattr(UNet, "lr_factors", {"down": 0.1}, raising=False)
    run(tmp_path / "run", few_scenes, "trainer.max_steps=6", "optimizer.lr=0.5")
    run(tmp_path / "run", few_scenes, "trainer.max_steps=12", "optimizer.lr=0.5", "resume=auto")
    schedule = Cosine(floor=0.0, warmup=0.25)
    expected = [
        0.5 * schedule.factor(step / budget) for budget, steps in ((6, range(6)), (12, range(6, 12))) for step in steps
    ]
    assert seen == [pytest.approx([rate, rate, 0.1 * rate, 0.1 * rate]) for rate in expected]


@pytest.mark.slow
def test_a_callback_of_the_users_own_is_one_override(tmp_path: Path, few_scenes: Path) -> None:
    timer = "+callbacks.further.timer._target_=pytorch_lightning.callbacks.Timer"
    last = run(tmp_path / "run", few_scenes, "trainer.max_epochs=1", timer, "+callbacks.further.none=null")
    assert "time_elapsed" in last["callbacks"]["Timer"]


@pytest.mark.slow
def test_the_average_of_weights_is_kept_as_the_best_and_training_goes_on_without_it(
    tmp_path: Path, few_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    after_step = WeightAverage.on_train_batch_end
    at_start = WeightAverage.on_fit_start

    def keep(module: pl.LightningModule) -> None:
        seen.append({name: w.clone() for name, w in module.network.state_dict().items()})  # type: ignore[operator, union-attr]

    def start(self: WeightAverage, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        keep(module)
        at_start(self, trainer, module)

    def step(self: WeightAverage, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        keep(module)
        after_step(self, trainer, module, *rest)

    monkeypatch.setattr(WeightAverage, "on_fit_start", start)
    monkeypatch.setattr(WeightAverage, "on_train_batch_end", step)
    last = run(tmp_path / "run", few_scenes, "trainer.max_steps=4", "callbacks.average_weights=0.3")
    best = read(tmp_path / "run" / BEST)["state_dict"]
    assert len(seen) == 5
    for name, first in seen[0].items():
        if not first.is_floating_point():
            continue
        expected = first
        for k, weights in enumerate(seen[1:], 1):
            decay = min(0.3, (1 + k) / (10 + k))
            assert decay < 0.3 or k > 2
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(best[f"network.{name}"], expected)
        assert torch.equal(last["state_dict"][f"network.{name}"], seen[-1][name])
    assert not torch.equal(best["network.head.weight"], seen[-1]["head.weight"])


@pytest.mark.slow
def test_a_run_that_was_stopped_early_goes_on_only_where_the_config_lets_it(tmp_path: Path, few_scenes: Path) -> None:
    def steps(*overrides: str) -> int:
        budget = ["trainer.max_epochs=4", "resume=auto", "callbacks=early_stopping"]
        return int(run(tmp_path / "run", few_scenes, *budget, *overrides)["global_step"])

    never = "callbacks.early_stopping.min_delta=1"  # no Dice rises by that much twice
    assert steps(never, "callbacks.early_stopping.patience=1") == 8
    assert steps(never, "callbacks.early_stopping.patience=1") == 8
    assert steps(never, "callbacks.early_stopping.patience=2") == 12
    assert steps("callbacks.early_stopping=null") == 16


@pytest.mark.slow
def test_a_run_that_has_reached_its_goal_stays_there(tmp_path: Path, few_scenes: Path) -> None:
    goal = ["trainer.max_epochs=4", "callbacks=early_stopping", "+callbacks.early_stopping.stopping_threshold=-1"]
    for _ in range(2):
        last = run(tmp_path / "run", few_scenes, "resume=auto", *goal)
        assert last["global_step"] == 4
    assert run(tmp_path / "run", few_scenes, "resume=auto", "trainer.max_epochs=2")["global_step"] == 8


@pytest.mark.slow
def test_a_budget_that_ends_before_the_first_validation_leaves_its_last_weights(
    tmp_path: Path, few_scenes: Path
) -> None:
    early = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=2"]
    run(tmp_path / "run", few_scenes, *early)
    best, last = (read(tmp_path / "run" / name)["state_dict"] for name in (BEST, RESUME))
    assert best
    assert all(torch.equal(weights, last[name]) for name, weights in best.items())
    last = run(tmp_path / "averaged", few_scenes, *early, "callbacks.average_weights=0.9")
    average = last["callbacks"]["WeightAverage"]["average"]
    best = read(tmp_path / "averaged" / BEST)["state_dict"]
    assert all(torch.equal(best[f"network.{name}"], weights) for name, weights in average.items())
    assert not torch.equal(best["network.head.weight"], last["state_dict"]["network.head.weight"])


def test_a_misspelt_objective_is_answered_before_the_first_step(
    tmp_path: Path, few_scenes: Path, rates: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"'val/dise', which is not measured; set it to one of val/loss, val/iou"):
        run(tmp_path / "run", few_scenes, "objective=val/dise")
    assert not rates


@pytest.mark.slow
def test_a_logger_of_lightnings_own_is_one_override(tmp_path: Path, few_scenes: Path) -> None:
    logger = ["_target_=pytorch_lightning.loggers.CSVLogger", f"save_dir={tmp_path}/log", "name=null"]
    run(tmp_path / "run", few_scenes, "trainer.max_epochs=1", *(f"+logger.csv.{setting}" for setting in logger))
    (table,) = tmp_path.glob("log/**/metrics.csv")
    assert "val/iou" in table.read_text().splitlines()[0].split(",")


@pytest.mark.slow
def test_no_part_of_a_gradient_is_saved(tmp_path: Path, few_scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Checkpoints._save

    def watch(self: Checkpoints, trainer: pl.Trainer, within_epoch: bool) -> None:
        save(self, trainer, within_epoch)
        saved.append(read(tmp_path / "run" / RESUME)["training"]["batches"])

    monkeypatch.setattr(Checkpoints, "_save", watch)
    often = ["callbacks.checkpoint_minutes=0", "trainer.accumulate_grad_batches=2", "data.steps_per_epoch=7"]
    run(tmp_path / "run", few_scenes, "trainer.max_epochs=1", *often)
    assert saved == [2, 4, 6, 0]


@pytest.mark.slow
def test_a_weight_map_reaches_the_loss_of_training_alone(
    tmp_path: Path, few_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor | None] = []

    def watch(self: CrossEntropyLoss, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        seen.append(weight)
        return Loss.forward(self, logits, mask, weight)

    monkeypatch.setattr(CrossEntropyLoss, "forward", watch)
    # Of two classes, so that none weighs more than 2 by its rarity.
    two = [
        "data.labels.classes={background: 0, nucleus: [1, 2]}",
        "~data.labels.classes.mitosis",
        "data.labels.colors=null",
    ]
    steps = ["trainer.max_epochs=1", "loss=ce", "data.window=[128,128]"]
    run(tmp_path / "run", few_scenes, *two, *steps, "data/weight_map=border", "data.weight_map.w0=50")
    trained, evaluated = seen[:4], seen[4:]
    assert all(weight is not None and weight.shape == (1, 128, 128) for weight in trained)
    assert max(float(weight.max()) for weight in trained if weight is not None) > 5
    assert evaluated
    assert all(weight is None for weight in evaluated)


@pytest.mark.parametrize(
    "twice", [["class_weights=true"], ["loss.class_weights=[1,2,3]"], ["loss=dice_focal", "class_weights=true"]]
)
def test_classes_are_not_balanced_twice(tmp_path: Path, few_scenes: Path, twice: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data\.weight_map balances the classes already.*set class_weights=false"):
        run(tmp_path / "run", few_scenes, "data/weight_map=border", *twice)


def test_a_loss_without_weights_of_pixels_is_refused_beside_a_weight_map(tmp_path: Path, few_scenes: Path) -> None:
    with pytest.raises(
        ValueError, match="loss=smp takes no weights of pixels; set loss=dice_ce, or data/weight_map=null"
    ):
        run(tmp_path / "run", few_scenes, "data/weight_map=border", "loss=smp")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_steps=-5", "trainer.max_steps is -5; expected 1 or more"),
        ("trainer.max_epochs=0", "trainer.max_epochs is 0; expected 1 or more"),
        ("trainer.max_steps=2.5", "trainer.max_steps is 2.5"),
        ("trainer.max_time=00:00:00:00", "which is no time"),
        ("trainer.max_epochs=null", "there is no budget"),
    ],
)
def test_a_budget_of_nothing_is_refused(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_budget(compose([override]).trainer)


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"callbacks.average_weights is 1.0; expected .*0.999"):
        WeightAverage(1.0)


def test_a_precision_that_nothing_is_made_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision is 64-true; expected auto, 32, bf16, 16"):
        job._hardware(compose(["trainer=cpu", "trainer.precision=64-true"]).trainer)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"sees no GPU here; .* or set trainer=cpu"):
        job._hardware(compose(["trainer=gpu"]).trainer)


def test_a_wrong_time_is_answered_with_one_that_works() -> None:
    config = compose(["trainer.max_time=10min"])
    with pytest.raises(ValueError, match="00:00:10:00"):
        read_budget(config.trainer)


def test_an_objective_that_is_not_logged_is_answered_with_those_that_are(tmp_path: Path, few_scenes: Path) -> None:
    with pytest.raises(ValueError, match="val/dice_case"):
        run(tmp_path / "run", few_scenes, "trainer.max_epochs=1", "objective=val/miou")


@pytest.mark.slow
def test_evaluation_that_is_not_finite_stops_and_names_the_case(tmp_path: Path, few_scenes: Path) -> None:
    run(tmp_path / "run", few_scenes, "trainer.max_epochs=1")
    broken = read(tmp_path / "run" / RESUME)
    name = next(key for key in broken["state_dict"] if key.endswith("head.bias"))
    broken["state_dict"][name] = torch.full_like(broken["state_dict"][name], float("nan"))
    module_config = compose([*TINY, f"data.root={few_scenes}"])
    from segline.config import build
    from segline.module import SegmentationModule

    data = build(module_config.data)
    data.prepare()
    cases = {split: [case.name for case in found] for split, found in data.cases.items()}
    module = SegmentationModule(
        build(module_config.model), build(module_config.loss), data.labels, cases, build(module_config.optimizer)
    )
    module.load_state_dict(broken["state_dict"], strict=False)
    batch = next(iter(data.val_dataloader()))
    with pytest.raises(ValueError, match=data.cases["val"][0].name):
        module.validation_step(batch, 0)


class Noted:
    """A logger that notes how it was closed."""

    closed: ClassVar[list[bool]] = []

    def log_report(self, *report: Any) -> None:
        """Nothing: it is there to say whose logger it is."""

    def finish(self, failed: bool) -> None:
        self.closed.append(failed)


class Broken:
    """A logger whose server cannot be reached."""

    def __init__(self) -> None:
        raise ConnectionError("no server")


def test_a_logger_is_closed_when_the_next_one_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"first": Noted, "second": Broken}
    monkeypatch.setattr(job, "build", lambda node, **own: made[node.name]())
    config = OmegaConf.create({"logger": {name: {"name": name} for name in made}})
    with pytest.raises(ConnectionError), job._loggers(config, tmp_path):
        pytest.fail("there is nothing to train with")
    assert Noted.closed == [True]


def test_a_run_that_goes_on_took_the_memory_of_its_whole_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(network=UNet(1, 2, channels=[2, 4]))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer, budget = SimpleNamespace(strategy=strategy, global_step=3, world_size=1), SimpleNamespace(elapsed=1.0)
    for memory, resumed, expected in ((80, False, 80), (50, True, 80), (90, True, 90), (40, False, 40)):
        monkeypatch.setattr(report, "peak", lambda memory=memory: memory * 2**20)
        report.write_costs(tmp_path, module, trainer, budget, resumed=resumed)  # type: ignore[arg-type]
        assert tables.read_json(tmp_path / tables.COSTS)["memory_mb"] == expected
