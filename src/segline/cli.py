"""The command line around Hydra: `segline train`, and going on in a run folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from segline.explain import explained

_COMMANDS = ("train", "predict")


def main(command: str | None = None) -> None:
    """Run a command: the one given, or the first word of the command line."""
    arguments = sys.argv[1:]
    if command is None:
        if not arguments or arguments[0] not in _COMMANDS:
            print(f"usage: segline {{{','.join(_COMMANDS)}}} [--help] [overrides]", file=sys.stderr)
            sys.exit(0 if arguments in (["--help"], ["-h"]) else 2)
        command, arguments = arguments[0], arguments[1:]
    with explained(command, arguments):
        sys.argv[1:] = [quoted(argument) for argument in going_on(arguments)]
        from segline import run

        getattr(run, command)()


def quoted(argument: str) -> str:
    """Let a template such as data.images=/x/{name}.tif pass as a text: to Hydra a bare brace begins a mapping.

    >>> quoted("data.images=/x/{name}.tif"), quoted("data.images=[{n}_r.tif,{n}_g.tif]"), quoted("data.window=[32,32]")
    ("data.images='/x/{name}.tif'", "data.images=['{n}_r.tif','{n}_g.tif']", 'data.window=[32,32]')
    """
    match = re.fullmatch(r"(data\.(?:images|masks|group)=)(\[?)([^'\"]*[{(*][^'\"]*?)(\]?)", argument)
    if match is None:
        return argument
    key, opening, value, closing = match.groups()
    values = value.split(",") if opening else [value]
    return key + opening + ",".join(f"'{one.strip()}'" for one in values) + closing


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
    return [*own, *saved, *arguments, f"hydra.run.dir='{folder}'"]
