"""The command line around Hydra: `segline train`, and going on in a run folder."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from segline.processes import search_path
from segline.refusals import explained
from segline.words import in_quotes, natural

#: What a user types -> the function of `segline.run`.
_COMMANDS = {
    "train": "train",
    "predict": "predict",
    "eval": "evaluate",
    "robustness": "robustness",
    "explain": "explain",
    "export": "export",
    "models": "compare_models",
}
#: The command that takes folders and composes no config.
COMPARE = "compare"
#: What libraries read when they load. Ray and MLflow tell their makers of each use unless they are told not to.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
#: Seconds between two states of a progress bar in a log file, where each is a line.
_LOGGED_EVERY = "10"
#: Overrides that are templates of paths, or lists of them, or an expression.
_TEMPLATES = ("data.images", "data.masks", "data.group")
#: What Hydra takes for a text without quotes.
_PLAIN = re.compile(r"[\w./+%@$*?:-]*", re.ASCII)
#: Overrides that are paths. A comma in one that does not exist separates the points of a sweep.
_PATHS = ("checkpoint", "input", "output", "resume", "data.root", "hydra.run.dir", "hydra.sweep.dir")


def main(command: str | None = None) -> None:
    """Run a command: the one given, or the first word of the command line."""
    arguments = sys.argv[1:]
    if command is None:
        if not arguments or arguments[0] not in (*_COMMANDS, COMPARE):
            print(f"usage: segline {{{','.join([*_COMMANDS, 'compare'])}}} [--help] [overrides]", file=sys.stderr)
            sys.exit(0 if arguments in (["--help"], ["-h"]) else 2)
        command, arguments = arguments[0], arguments[1:]
    if command == COMPARE:
        with explained(command, arguments):
            from segline.comparison.command import main as compare

            return compare(arguments)
    os.environ["PYTHONPATH"] = search_path()  # for all that this process starts, Hydra's launchers too
    settings = _SETTINGS if sys.stderr.isatty() else {**_SETTINGS, "TQDM_MININTERVAL": _LOGGED_EVERY}
    os.environ |= {name: value for name, value in settings.items() if name not in os.environ}
    with explained(command, arguments):
        if command == "train":
            arguments = repeated(arguments)
        sweep = bool({"-m", "--multirun"} & set(arguments))
        sys.argv[1:] = [quoted(listed(one) if sweep else one, sweep) for one in going_on(arguments)]
        _refuse_shared_output(sys.argv[1:] if sweep else [])
        if command == "models":
            sys.argv[1:] = gathered(sys.argv[1:])
        from segline import run

        if command in ("eval", "robustness"):
            run.offer_own_data(_given(arguments, "checkpoint"), several=sweep)
        getattr(run, _COMMANDS[command])()


def repeated(arguments: Sequence[str]) -> list[str]:
    """Let folds=5 stand for the sweep over all folds of a cross-validation, and seeds=3 for that over as many seeds.

    `-m` may stand anywhere.

    Raises:
        ValueError: No number of them.

    >>> repeated(["model=unet", "seeds=2", "folds=2"]), repeated(["seed=0,1", "-m"])
    (['-m', 'model=unet', 'seed=0,1', 'data.fold=[0,2],[1,2]'], ['-m', 'seed=0,1'])
    """
    values = {"seeds=": lambda n: f"seed={','.join(map(str, range(n)))}", "folds=": _folds}
    swept = []
    for argument in arguments:
        key = next((key for key in values if argument.startswith(key)), None)
        number = argument.partition("=")[2]
        if key and not (number.isdecimal() and int(number) > 1):
            raise ValueError(f"{argument}: expected a number of 2 or more, such as {key}5")
        swept.append(values[key](int(number)) if key else argument)
    given = [argument for argument in swept if argument in ("-m", "--multirun")]
    if (not given and swept == list(arguments)) or any(
        a in ("-c", "-h", "--help") or a.startswith(("--cfg", "--info")) for a in swept
    ):
        return swept
    return ["-m", *(argument for argument in swept if argument not in given)]  # first: Hydra takes it nowhere else


def _folds(number: int) -> str:
    return f"data.fold={','.join(f'[{fold},{number}]' for fold in range(number))}"


def _given(arguments: Sequence[str], key: str) -> str | None:
    """The value of an override, as typed; of a list its first."""
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")]
    if not values:
        return None
    value = values[-1].strip("'\"")
    if value.startswith("[") and not Path(value).exists():
        value = value.strip("[]").split(",")[0].strip(" '\"")
    value = os.path.expanduser(value)
    return value if Path(value).exists() else next(iter(_checkpoints(value)), value)


def quoted(argument: str, sweep: bool = False) -> str:
    r"""Let templates such as data.images=/x/{name}.tif, and paths of any signs, pass as texts: to Hydra braces and = mean something.

    >>> quoted("data.images=/x/{name}.tif"), quoted("data.images=[{n}_r.tif,{n}_g.tif]"), quoted("data.window=[32,32]")
    ("data.images='/x/{name}.tif'", "data.images=['{n}_r.tif','{n}_g.tif']", 'data.window=[32,32]')
    >>> quoted("checkpoint=runs/0_loss=ce"), quoted("input=a b.tif"), quoted("output='x=1'"), quoted("data.root=a,b", sweep=True)
    ("checkpoint='runs/0_loss=ce'", "input='a b.tif'", "output='x=1'", 'data.root=a,b')
    >>> quoted("data.root=/daten/übung"), quoted("data.images=/home/o'brien/a.tif"), quoted("data.group=null")
    ("data.root='/daten/übung'", "data.images='/home/o\\'brien/a.tif'", 'data.group=null')
    """
    key, equals, value = argument.partition("=")
    separates = sweep and "," in value and not Path(value).exists()
    if key in (*_TEMPLATES, "checkpoint") and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{','.join(_text(one.strip()) for one in value[1:-1].split(','))}]"
    if key in _TEMPLATES or (key in _PATHS and not separates):
        return key + equals + _text(value)
    return argument


def listed(argument: str) -> str:
    """Let a pattern of run folders stand for a sweep over those that it finds, whatever signs their names have.

    >>> listed("checkpoint=runs/none*"), listed("checkpoint=[a,b]")
    ('checkpoint=runs/none*', 'checkpoint=[a,b]')
    """
    key, _, value = argument.partition("=")
    whole = Path(value).exists()  # of any signs
    found = _checkpoints(value) if key == "checkpoint" and not whole else []
    return f"{key}={','.join(map(in_quotes, found))}" if found else argument


def _checkpoints(value: str) -> list[str]:
    """Where networks lie that commas separate, each a path, which may have commas, too, or a pattern; nothing if one is not there."""
    found: list[str] = []
    path = ""
    for part in value.split(","):
        path += os.path.expanduser(part.strip("'\""))
        here = [path] if Path(path).exists() else sorted(filter(_is_checkpoint, glob(path)), key=natural)
        found += here
        path = "" if here else f"{path},"
    return [] if path else found


def _is_checkpoint(path: str) -> bool:
    from segline.checkpoints import BEST
    from segline.inference.members import ONNX

    return (Path(path) / BEST).is_file() if Path(path).is_dir() else path.endswith((".ckpt", ONNX))


def _refuse_shared_output(arguments: Sequence[str]) -> None:
    """A sweep over networks that all write into one folder would leave the last one's results."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if "','" in given.get("checkpoint", "") and "${" not in given.get("output", "${"):
        raise ValueError(
            f"output={given['output']} is one place for several checkpoints, of which each would overwrite the one before"
        )


def gathered(arguments: Sequence[str]) -> list[str]:
    """Let all that is said of models pass as one list of texts: Hydra would take model=a,b for a sweep.

    >>> gathered(["model=unet,smp", "+model.channels=[8,16]", "size=[64,64]"])
    ['size=[64,64]', "models=['model=unet,smp','+model.channels=[8,16]']"]
    """
    said = [argument for argument in arguments if re.match(r"[+~]*model[.=]", argument)]
    others = [argument for argument in arguments if argument not in said]
    return [*others, f"models=[{','.join(map(_text, said))}]"] if said else others


def _text(value: str) -> str:
    """A value that Hydra takes for a text, whatever its signs are."""
    if _PLAIN.fullmatch(value) or value[:1] in ("'", '"'):
        return value
    return in_quotes(os.path.expanduser(value))


def going_on(arguments: Sequence[str]) -> list[str]:
    """Replace `resume=RUN` by what RUN was started with, in its own folder; what else is given goes on top.

    Raises:
        ValueError: RUN is not a run folder or holds nothing to resume from.
    """
    given = [a for a in arguments if a.startswith("resume=")]
    if not given or given[-1] in ("resume=auto", "resume=null"):
        return list(arguments)
    import yaml

    folder = Path(given[-1].removeprefix("resume=").strip("'\""))
    config = folder / "config.yaml"
    started = (yaml.safe_load(config.read_text()) or {}).get("run", {}) if config.is_file() else {}
    if "overrides" not in started:
        raise ValueError(
            f"{given[-1]}: {folder} is not a run folder of src/train.py; expected one that holds config.yaml and resume.ckpt"
        )
    saved = [o for o in started["overrides"] if not o.startswith(("resume=", "hydra.run.dir="))]
    own = ["--config-dir", started["config_dir"]] if started["config_dir"] and "--config-dir" not in arguments else []
    # A point of a sweep goes on by itself: without the others, and without the study that it was asked by.
    alone = ["hydra.mode=RUN", "trial=null"] if any(o.startswith(("sweep=", "trial=")) for o in saved) else []
    return [*own, *saved, *alone, *arguments, f"hydra.run.dir={folder}"]
