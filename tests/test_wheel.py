"""`pip install .`: the sdist, the wheel from it, and the command in an environment that sees no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CONFIGS = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "conf").rglob("*.yaml")}

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one sdist, and one wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment: the wheel, over the libraries that are here already."""
    environment = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    call(
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--python",
        python,
        wheel,
        cwd=environment,
    )
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def test_the_sdist_holds_what_a_build_and_the_tests_need(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names > CONFIGS
    assert {"Makefile", "requirements.lock", "LICENSE", "README.md", "src/train.py", "tests/conftest.py"} < names
    assert not [name for name in names if name.startswith((".venv", "runs", ".git/"))]


def test_the_wheel_holds_the_package_and_its_configs_alone(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"segline/{name}" for name in CONFIGS} == {name for name in names if name.endswith(".yaml")}
    assert {"segline/py.typed", "segline/evaluation/page.html"} < names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"segline", "hydra_plugins"}


def test_the_command_runs_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = call(installed / "python", "-c", "import segline.config as c; print(c.__file__, c.CONF_DIR)", cwd=tmp_path)
    assert all(Path(path).is_relative_to(installed.parent) for path in where.split())
    for name in ("attention_unet", "satellite", "dice_ce"):
        assert name in call(installed / "segline", "train", "--help", cwd=tmp_path)


def test_it_trains_and_evaluates_with_a_config_folder_of_the_user_on_top(installed: Path, tmp_path: Path) -> None:
    model = tmp_path / "mine" / "model" / "tiny.yaml"
    model.parent.mkdir(parents=True)
    unet = (REPOSITORY / "conf" / "model" / "unet.yaml").read_text()
    model.write_text(re.sub(r"(?m)^channels: .*", "channels: [4, 8]", unet))
    overrides = ["model=tiny", "trainer=debug", "logger=none", f"hydra.run.dir={tmp_path / 'run'}"]
    call(installed / "segline", "train", "--config-dir", tmp_path / "mine", *overrides, cwd=tmp_path)
    assert list((tmp_path / "run").rglob("*.ckpt"))
    call(installed / "segline", "eval", f"checkpoint={tmp_path / 'run'}", cwd=tmp_path)
    assert (tmp_path / "run" / "eval" / "val" / "report.html").is_file()
