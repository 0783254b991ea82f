"""Load a RunConfig from YAML files and dotted overrides; errors name the path of the key."""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deformable_detr.arguments import LARGEST_SEED, checked, require_bounded
from deformable_detr.config import ConfigError, RunConfig
from deformable_detr.config.problems import (
    describe_problems,
    foreign_content,
    locate,
    schema,
    suggest,
    without_kinds,
)
from deformable_detr.config.upgrade import upgrade
from deformable_detr.files import is_utf8, require_regular_file
from deformable_detr.files.formats import kind_of_folder, recognize
from deformable_detr.messages import in_brief, listed, shown
from deformable_detr.yaml12 import Yaml12Loader, load_yaml, read_yaml

logger = logging.getLogger(__name__)
Overrides = Sequence[str] | Mapping[str, Any]  # "dotted.key=value", or values by dotted key
_PACKAGE = Path(__file__).parents[1]
# The configs are inside the package in a wheel, and beside it in a checkout.
_CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
_MAX_BASES = 3
_SUFFIXES = (".yaml", ".yml")
_USE = (
    "data are given as data.train.annotations=FILE and data.train.images=DIR, weights as "
    "--finetune-from FILE"
)


@checked
def load_config(config: str | Path | RunConfig, overrides: Overrides = ()) -> RunConfig:
    """Read a config and apply overrides.

    Args:
        config: a YAML file, or the name of a config of the package, such as
            "deformable_detr_r50" or "backbones/resnet18"; or a loaded config.
        overrides: strings "dotted.key=value" with a YAML value; or a mapping from dotted key to
            value, where strings are parsed as YAML too.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    if isinstance(config, RunConfig):
        source, layers = "config", [config.model_dump(mode="json")]
    else:
        path = find_config(config)
        source, layers = shown(path.name), [_defaults(), *_read_with_bases(path)]
    return validate_config(
        _merged([*layers, *_as_nested(overrides)], source),
        source=source,
        overrides=_keys_of(overrides),
    )


def load_run_config(path: Path, overrides: Overrides = ()) -> RunConfig:
    """Read the `config.yaml` of a run folder, written by any version, and apply overrides.

    Args:
        path: the file.
        overrides: as for `load_config`; unknown keys in them are errors.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    content = _merge(_defaults(), upgrade(_read_yaml(path)))
    written = validate_config(content, source=path.name, ignore_unknown=True)
    layers = [written.model_dump(mode="json"), *_as_nested(overrides)]
    return validate_config(
        _merged(layers, path.name), source=path.name, overrides=_keys_of(overrides)
    )


def validate_config(
    content: Mapping[str, Any],
    *,
    source: str,
    ignore_unknown: bool = False,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Validate plain content, as read from YAML or a checkpoint.

    Args:
        content: the keys and values.
        source: name of the content in errors.
        ignore_unknown: drop unknown keys, with one warning that lists them. For configs written by
            the package, such as a checkpoint's: a later version may have removed a setting. In
            configs written by users unknown keys are errors.
        overrides: dotted keys of the content that were overridden, which errors name as such.

    Raises:
        ConfigError: a value is wrong; the message has the path of the key after `source`.
    """
    _require_bounded(content, source)
    for key, number in _too_large(content, source):
        place = locate(key.removeprefix(f"{source}.").split("."), source, overrides)
        raise ConfigError(f"{place}: must be at most {LARGEST_SEED}, got {in_brief(number)}")
    for key, text in _not_utf8(content, source):
        place = locate(key.removeprefix(f"{source}.").split("."), source, overrides)
        raise ConfigError(f"{place}: must have no lone surrogate, got {in_brief(text)}")
    try:
        return RunConfig.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        unknown = [
            detail["loc"] for detail in error.errors() if detail["type"] == "extra_forbidden"
        ]
        if ignore_unknown and unknown:
            paths = [without_kinds([str(part) for part in place]) for place in unknown]
            names = listed([".".join(path) for path in paths])
            logger.warning("%s: unknown settings are ignored: %s", source, names)
            return validate_config(functools.reduce(_without, paths, content), source=source)
        raise ConfigError(describe_problems(error, source, overrides)) from error
    except TypeError as error:
        raise ConfigError(f"{source}: values must be plain YAML, got {shown(error)}") from error


def find_config(config: str | Path) -> Path:
    """Return the config file of a path or a name.

    Raises:
        ConfigError: there is no such file; the message lists the known names.
    """
    path = Path(config)
    if path.suffix in _SUFFIXES:
        if _is_file(path):
            return path
        path = path.with_suffix("")
    candidate = _CONFIGS / f"{path}.yaml"
    if _is_file(candidate):
        return candidate
    raise ConfigError(f"config must be {_no_config(config, path)}")


def _no_config(config: str | Path, path: Path) -> str:
    """Describe what was given in place of a config: another file, or an unknown name."""
    names, given = config_names(), Path(config)
    known = f"a YAML file or one of {', '.join(names)}, got {in_brief(str(config))}"
    if not str(config).strip():
        return known
    try:
        if given.is_dir():
            kind = kind_of_folder(given)
            remedy = "give its config.yaml" if kind == "a run folder" else _USE
            return f"a YAML file, got {shown(given)}, {kind}; {remedy}"
        if given.is_file():
            kind = recognize(given) or "a file of another kind"
            return f"a YAML file whose name ends in .yaml, got {shown(given)}, {kind}; {_USE}"
    except (OSError, ValueError):  # no file can have such a name
        return known
    if given.suffix in _SUFFIXES:
        return f"an existing file, or one of {', '.join(names)}, got {in_brief(str(config))}" + (
            suggest(str(path), names)
        )
    return known + suggest(str(path), names)


def config_names() -> list[str]:
    """Return the names of the configs of the package."""
    return sorted(
        file.relative_to(_CONFIGS).with_suffix("").as_posix() for file in _CONFIGS.rglob("*.yaml")
    )


class _QuotingDumper(yaml.SafeDumper):
    """YAML dumper that quotes each string that version 1.1 or 1.2 would read as another type."""


for _source in (yaml.SafeDumper, Yaml12Loader):
    for _first, _rules in _source.yaml_implicit_resolvers.items():
        for _tag, _rule in _rules:
            _QuotingDumper.add_implicit_resolver(_tag, _rule, [_first])


def to_yaml(config: RunConfig) -> str:
    """Convert a config to YAML, from which `load_config` restores it."""
    content = config.model_dump(mode="json")
    return yaml.dump(content, Dumper=_QuotingDumper, sort_keys=False)


def _defaults() -> dict[str, Any]:
    return RunConfig().model_dump(mode="json")


def _read_with_bases(path: Path) -> list[dict[str, Any]]:
    """Read a file and its bases, the deepest base first."""
    layers: list[dict[str, Any]] = []
    file: Path | None = path
    while file is not None:
        if len(layers) > _MAX_BASES:
            raise ConfigError(f"{shown(path.name)}.base: must nest at most {_MAX_BASES} deep")
        content = _read_yaml(file)
        if what := foreign_content(content):
            raise ConfigError(f"{shown(file.name)}: {what}")
        base = content.pop("base", None)
        layers.insert(0, content)
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ConfigError(f"{file.name}.base: must be a file beside it, got {in_brief(base)}")
        try:
            require_regular_file(file.parent / base, "base")
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(
                f"{file.name}.base: must be a file beside it, got {in_brief(base)} ({error})"
            ) from error
        file = file.parent / base
    return layers


def _read_yaml(path: Path) -> dict[str, Any]:
    require_regular_file(path, "config")
    try:
        content = read_yaml(path, "config")
    except ValueError as error:
        raise ConfigError(f"{shown(path.name)}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(path.name)}: must hold keys, got {type(content).__name__}")
    return content


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


def _merged(layers: Sequence[dict[str, Any]], source: str) -> dict[str, Any]:
    for layer in layers:
        _require_bounded(layer, source)
    return functools.reduce(_merge, layers)


def _require_bounded(content: Mapping[str, Any], source: str) -> None:
    try:
        require_bounded(content, source)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sections; `above` wins, and another `kind` in it drops all keys of `below`."""
    if "kind" in above and above["kind"] != below.get("kind"):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        inherited = below.get(key)
        if isinstance(value, Mapping) and isinstance(inherited, Mapping):
            value = _merge(inherited, value)
        merged[key] = value
    return merged


def _too_large(content: Any, path: str) -> Iterator[tuple[str, int]]:
    """Yield path and value of all integers, keys included, that no setting can hold."""
    for place, value in _values(content, path):
        if isinstance(value, int) and abs(value) > LARGEST_SEED:
            yield place, value


def _not_utf8(content: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and value of all texts, keys included, that JSON cannot hold."""
    for place, value in _values(content, path):
        if isinstance(value, str) and not is_utf8(value):
            yield place, value


def _values(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield path and value of all values; keys have the path of their section."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield path, key
            yield from _values(value, f"{path}.{key}")
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _values(value, path)
    else:
        yield path, content


def _without(content: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return the content without the key at the end of a path."""
    key, *below = path
    if below:
        return {**content, key: _without(content[key], below)}
    return {name: value for name, value in content.items() if name != key}


def _as_nested(overrides: Overrides) -> Iterator[dict[str, Any]]:
    """Yield each override as nested content, as in a file."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            plain = _plain(key, value)
            yield _nest(key, _parse_value(key, plain) if isinstance(plain, str) else plain)
        return
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")):
            raise ConfigError(f"override must be dotted.key=value, got {in_brief(override)}")
        yield _nest(key, _parse_value(key, text))


def _plain(key: str, value: Any) -> Any:
    """Return the value of an override as YAML has it: of a path, or a number of NumPy."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, int | float):
        value = int(value) if isinstance(value, Integral) else float(value)
    _require_bounded({key: value}, "overrides")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"override {shown(key)} must be a YAML value, got {in_brief(value)}"
        ) from error
    return value


def _keys_of(overrides: Overrides) -> list[str]:
    """Return the dotted keys of overrides that `_as_nested` accepts."""
    return [str(one).partition("=")[0] for one in overrides]


def _parse_value(key: str, text: str) -> Any:
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {shown(key)}: must be a YAML value, got {in_brief(text)}"
        ) from error
    return text if isinstance(value, int | float) and _takes_text(key) else value


def _takes_text(key: str) -> bool:
    """Return whether a setting, given by its dotted key, is a text or a path."""
    whole = schema()
    options = [whole]
    for part in key.split("."):
        fields = [option.get("properties", {}).get(part, {}) for option in options]
        options = [
            whole["$defs"][option["$ref"].rpartition("/")[2]] if "$ref" in option else option
            for field in fields
            for option in field.get("anyOf") or field.get("oneOf") or [field]
        ]
    return any(
        option.get("type") == "string" and not {"enum", "const"} & option.keys()
        for option in options
    )


def _nest(key: str, value: Any) -> dict[str, Any]:
    """Nest a value below a dotted key."""
    *above, last = key.split(".")
    return functools.reduce(lambda inner, part: {part: inner}, reversed(above), {last: value})
