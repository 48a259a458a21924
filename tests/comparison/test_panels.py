"""Pictures of a comparison, of real runs: cases where methods disagree, whichever run of a method has them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import write_run

from segline.comparison import page as pages
from segline.comparison import panels as drawing
from segline.comparison.command import main
from segline.comparison.compare import compare_runs
from segline.inference.predictor import Settings

SRC = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.slow
def test_folds_are_shown_by_the_run_that_tested_the_case(tmp_path: Path) -> None:
    words = [
        "folds=2",
        "optimizer.lr=1e-2,1e-5",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "data=satellite",
        "data.window=[64,64]",
    ]
    words += [
        "data.margin=[8,8]",
        "data.steps_per_epoch=3",
        "model=unet",
        "model.channels=[4,8]",
        "logger=none",
        "data.num_workers=0",
    ]
    command = [sys.executable, str(SRC / "train.py"), *words, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "it's = a, page.html"
    comparing = [sys.executable, str(SRC / "compare.py"), str(tmp_path / "sweep"), f"output={page}"]
    done = subprocess.run(comparing, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "without pictures" not in done.stderr
    comparison = compare_runs([str(tmp_path / "sweep")])
    apart = int((np.ptp(comparison.scores, axis=0) > 0).sum())
    shown = re.findall(r'src="data:image/webp;base64,', page.read_text())
    assert len(shown) == 4 * min(apart, 4)  # image, truth and two methods
    first = [set(run.cases("test").names) for run in comparison.methods[0].runs]  # type: ignore[union-attr]
    assert first[0].isdisjoint(first[1])


def test_runs_without_weights_and_data_have_a_page_without_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, dice in {0.1: [0.5, 0.7], 0.2: [0.6, 0.4]}.items():
        write_run(tmp_path / f"runs/{rate}", {"cell": dice}, optimizer={"lr": rate})
    pages.write_with_panels(tmp_path / "page.html", compare_runs([str(tmp_path / "runs")]))
    assert "without pictures" in capsys.readouterr().err
    assert 'id="cases"' not in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_no_lack_of_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, dice in {0.1: [0.5, 0.7], 0.2: [0.6, 0.4]}.items():
        write_run(tmp_path / f"runs/{rate}", {"cell": dice}, optimizer={"lr": rate})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        pages.write_with_panels(tmp_path / "file" / "page.html", compare_runs([str(tmp_path / "runs")]))


def test_whatever_fails_in_a_picture_the_page_is_there_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate, dice in {0.1: [0.5, 0.7], 0.2: [0.6, 0.4]}.items():
        write_run(tmp_path / f"runs/{rate}", {"cell": dice}, optimizer={"lr": rate})
    asked = []

    def fail(config: Any, data_name: str, settings: Settings) -> None:
        asked.append(settings.trust)
        assert (tmp_path / "page.html").is_file()  # before any picture
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(drawing, "open_all", fail)
    main([str(tmp_path / "runs"), f"output={tmp_path / 'page.html'}", "trust=[my_package,other]"])
    assert asked == [["my_package", "other"]]
    assert "Without pictures: RuntimeError: out of &lt;memory&gt;" in (tmp_path / "page.html").read_text()
