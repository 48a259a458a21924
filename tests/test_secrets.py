"""What is a secret among settings, and what only looks like one."""

from typing import Any

import pytest

from segline.secrets import refuse_secrets, without_secrets

#: Of the environment; a plain word, a number and a user's name are no secrets.
VARIABLES = {
    "SOME_PASSWORD": "letmein4ever",
    "PGPASSWORD": "correct-horse-battery",
    "DISABLE_TOKEN": "1",
    "A_PASSWORD": "segmentation",
    "AWS_SECRET_ACCESS_KEY": "minio4admin",
    "MINIO_ACCESS_KEY": "jdoe2024",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def refusal(settings: Any, typed: list[str]) -> str:
    """What is said; nothing if nothing is refused."""
    try:
        refuse_secrets(settings, typed)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "typed"),
    [
        ({"trainer": {"devices": 1}}, []),
        ({"project": "segmentation"}, []),
        ({"api_key": None}, []),
        ({"use_secret": False}, ["model.use_secret=true,false"]),
        ({"api_key": "${oc.env:KEY}"}, ["+logger.comet.api_key=''", "+logger.comet.api_key='${oc.env:K}'"]),
        ({"model": {"pos_token": "learned", "num_tokens": 123456, "cls_token": "learned_positional_2d"}}, []),
        ({"uri": "postgresql://segline_searcher@host/db"}, ["hydra.sweeper.storage='postgresql://me:${oc.env:PGPASSWORD}@h/d'"]),
        ({"uri": "https://segmentation-team@host/x"}, []),
        ({"data": {"labels": {"classes": {"secret": "#ff0000"}}}}, []),
        ({"uri": "https://host:5000/a@b"}, []),
        ({"root": "/data/minio4admins"}, []),
        ({"root": "/home/jdoe2024/data"}, []),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_a_setting(settings: Any, typed: list[str]) -> None:
    assert refusal(settings, typed) == ""


@pytest.mark.parametrize(
    ("settings", "typed", "said"),
    [
        ({"a": ["x", "http://me:p4ss@host"]}, [], "a holds a password in an address"),
        ({"uri": "redis://:p4ss@host"}, [], "uri holds a password in an address"),
        ({"uri": "postgresql://me:p4#ss@host/d"}, [], "uri holds a password in an address"),
        ({"uri": "postgresql://me:p4/s?s@host/d"}, [], "uri holds a password in an address"),
        ({"uri": f"https://{'5fa1b2c3' * 3}@host"}, [], "uri holds a password in an address"),
        ({"logger": {"comet": {"api_key": "abc"}}}, [], "logger.comet.api_key holds a password, a key or a token"),
        ({"hf_token": "hf_5fa1b2c3d4e5f6"}, [], "hf_token holds a password, a key or a token"),
        ({"token": "5fa1b2c3.5fa1b2c3.xyz"}, [], "token holds a password, a key or a token"),
        ({"dbpassword": "abc"}, [], "dbpassword holds a password, a key or a token"),
        ({"note": "see /a/letmein4ever/b"}, [], "note holds the value of SOME_PASSWORD"),
        ({"note": "correct-horse-battery"}, [], "note holds the value of PGPASSWORD, .* give the variable another name"),
        ({}, ["+logger.comet.api_key=abc,def"], r"logger.comet.api_key holds a password, a key or a token"),
        ({}, ["hydra.launcher.ray.init={_redis_password:abc}"], r"hydra.launcher.ray.init holds a password, a key or a token"),
        ({}, ["hydra.sweeper.storage='postgresql://me:p4ss@host'"], r"storage holds .*: hydra.sweeper.storage='\$\{oc.env:ADDRESS\}'"),
    ],
)  # fmt: skip
def test_secrets_are_refused_by_where_they_stand_and_whose_they_are(settings: Any, typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        refuse_secrets(settings, typed)
    assert not any(secret in str(refused.value) for secret in ("p4", "5fa1b2c3", "letmein4ever", "abc", "correct"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("uri=postgresql://me:p@ssw@host/runs", "uri=postgresql://***@host/runs"),
        ("api_key=ab$cd,ef", "api_key=***"),
        ("password='my long one'", "password=***"),
        ("see /a/letmein4ever/b", "see /a/***/b"),
        ("optimizer.lr=0.001", "optimizer.lr=0.001"),
    ],
)
def test_no_part_of_a_secret_is_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
