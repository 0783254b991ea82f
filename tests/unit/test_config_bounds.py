"""Configs that ask for more than a file of their size should are refused before they are built."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.arguments import MOST_VALUES, require_bounded
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config, load_run_config, validate_config
from deformable_detr.config.upgrade import upgrade

SECONDS = 5  # for one config; without bounds most of these do not end


def laughs(levels: int) -> str:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *lines])


HOSTILE = {
    "aliases of aliases": (laughs(5), "more than 4096 values, aliases written out"),
    "endless aliases": (laughs(40), "more than 4096 values, aliases written out"),
    "merge keys": ("a: &a {b: 1}\nc: {!!merge <<: *a}", "a tag that does not fit its value"),
    "a value in itself": ("a: &a [*a]", "a value that contains itself"),
    "deep lists": ("a: " + "[" * 50_000, "nested more than 20 deep"),
    "deep sections": ("\n".join(" " * n + "a:" for n in range(300)), "nested more than 20 deep"),
    "many keys": ("\n".join(f"k{n}: 1" for n in range(12_000)), "more than 4096 values"),
    "many characters": ("a: '" + "x" * 2_000_000 + "'", "more than 131072 characters"),
    "a list as key": ("? [a, b]\n: 1", "a key that is no scalar"),
    "another tag": ("a: !!binary aGk=", "a tag that does not fit its value, tag:yaml.org,2002:b"),
    "a tag of Python": ("a: !!python/object:os.system x", "a tag that does not fit its value"),
    **{
        f"{tag} of a text": (f"a: !!{tag} text", "a tag that does not fit its value")
        for tag in ("int", "float", "bool", "null", "timestamp", "map", "seq")
    },
    "a mapping that is a list": ("!!map [a, b]", "a tag that does not fit its value"),
    "a text that is a mapping": ("a: !!str {b: 1}", "a tag that does not fit its value"),
    "a character beyond Unicode": ('a: "\\U00110000"', "chr() arg not in range"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [load_config, load_run_config])
def test_a_file_is_refused_at_once_with_its_name_and_the_place(
    tmp_path: Path, name: str, read: Any
) -> None:
    text, problem = HOSTILE[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert time.perf_counter() - start < SECONDS
    message = str(caught.value)
    assert message.startswith("x.yaml: must be YAML, got ")
    assert problem in message
    assert len(message) < 200
    assert "\n" not in message


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=" + "[" * 100_000,
        "train.epochs=[" + "1," * 10_000 + "1]",
        "train.epochs=[&a [x, x], [*a, *a]" * 5_000,
        ".".join(["train"] * 50_000) + "=1",
        {"train": {"epochs": [[1] * 3000] * 3000}},
    ],
)
def test_an_override_is_refused_at_once(override: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError):
        load_config("quickstart", override if isinstance(override, dict) else [override])
    assert time.perf_counter() - start < SECONDS


def test_aliases_and_tags_of_sound_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "model:\n  encoder: &stack {num_layers: !!int 3, dropout: !!float 0}\n  decoder: *stack\n"
    )
    model = load_config(path).model
    assert model.encoder.num_layers == model.decoder.num_layers == 3


@pytest.mark.parametrize("base", ["pipe.yaml", ".", "/dev/zero", "a\0b", "x" * 3000, "https://a/b"])
def test_a_base_must_be_a_regular_file(tmp_path: Path, base: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    path = tmp_path / "x.yaml"
    path.write_text(f'base: "{base}"'.replace("\0", "\\0"))
    with pytest.raises(ConfigError, match=r"^x\.yaml\.base: must be a file beside it, got "):
        load_config(path)


def test_a_pipe_is_no_config_of_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="must be a regular file, found a named pipe"):
        load_run_config(tmp_path / "config.yaml")


def shared(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [shared(14), shared(1000), deep(30), deep(100_000), cycle(), [0] * MOST_VALUES]
)
@pytest.mark.parametrize("check", [upgrade, lambda content: validate_config(content, source="x")])
def test_content_of_a_pickle_is_bounded_as_it_would_be_written(value: Any, check: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"must be nested at most 20 deep|must hold at most 4096"):
        check({"train": {"epochs": value}})
    assert time.perf_counter() - start < SECONDS


def test_the_bound_is_exact() -> None:
    require_bounded([0] * (MOST_VALUES - 1), "it")
    require_bounded(deep(20), "it")
    with pytest.raises(ValueError, match="it must hold at most 4096 values"):
        require_bounded([0] * MOST_VALUES, "it")
    with pytest.raises(ValueError, match="it must be nested at most 20 deep"):
        require_bounded(deep(21), "it")


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        (r'train.seed="\ud800"', "override train.seed"),
        (r'data.train={images: ["a", {b: "x\udc00"}]}', "override data.train"),
        (r'data={"\ud800": 1}', "override data"),
    ],
)
def test_a_lone_surrogate_is_named(tmp_path: Path, setting: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{place}.*: must have no lone surrogate, got '.*\\u"):
        load_config("quickstart", [setting])
    key, _, value = setting.partition("=")
    path = tmp_path / "x.yaml"
    path.write_text(f"{key.split('.')[0]}: {{{key.split('.')[-1]}: {value}}}")
    with pytest.raises(ConfigError, match=r"^x\.yaml\..*: must have no lone surrogate, got '.*\\u"):
        load_config(path)
