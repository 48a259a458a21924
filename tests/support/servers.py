"""Servers on loopback that tests ask, and the tiny training that they ask about."""

import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

TRAIN = str(Path(__file__).resolve().parents[2] / "src" / "train.py")
TINY = [
    "trainer=cpu", "trainer.max_epochs=2", "data=satellite", "data.window=[64,64]", "data.margin=[8,8]", "data.steps_per_epoch=3",
    "data.num_workers=0", "model=unet", "model.channels=[4,8]", "callbacks.pictures=false",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def asked(address: str, question: dict[str, Any] | None = None) -> bytes:
    """The answer of a server that may still be starting."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    for _ in range(300):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")
