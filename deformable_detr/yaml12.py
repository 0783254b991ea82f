"""YAML 1.2 of bounded size: keys, lists and scalars as in JSON."""

import re
from pathlib import Path
from typing import Any

import yaml

from deformable_detr.arguments import MOST_LEVELS, MOST_VALUES
from deformable_detr.files import require_regular_file
from deformable_detr.messages import in_brief, shown

MOST_CHARACTERS = 1 << 17  # of a text; the largest config of the package has 2300
_PREFIX = "tag:yaml.org,2002:"
_STRUCTURES: dict[str, type[yaml.Node]] = {
    f"{_PREFIX}map": yaml.MappingNode,
    f"{_PREFIX}seq": yaml.SequenceNode,
    f"{_PREFIX}str": yaml.ScalarNode,
}


class Yaml12Loader(yaml.SafeLoader):
    """YAML loader with the scalars of version 1.2: 1e-4 is a number, `no` a string, 012 is 12.

    Depth and number of values are bounded while the text is parsed; an alias counts as much as what
    it stands for.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._count = 0  # of values so far, aliases written out
        self._sizes: dict[str, int] = {}  # values below an anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is one too many."""
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise _problem("a value that contains itself", event.start_mark)
            self._add(self._sizes.get(str(event.anchor), 0), event)
            return super().compose_node(parent, index)
        if self._level > MOST_LEVELS:
            raise _problem(f"values nested more than {MOST_LEVELS} deep", event.start_mark)
        before = self._count
        self._add(1, event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._count - before
        _require_plain_tag(self, node)
        return node

    def _add(self, values: int, event: yaml.Event) -> None:
        self._count += values
        if self._count > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES} values, aliases written out", event.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a dictionary, unless a key repeats or is no scalar."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise _problem("a key that is no scalar", key_node.start_mark)
            if key in seen:
                raise _problem(f"duplicate key {in_brief(key)}", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, what: str) -> Any:
    """Read a YAML file; None if it is empty.

    Args:
        file: path of the file, in UTF-8.
        what: its name in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, or not YAML; the message is one line.
    """
    require_regular_file(file, what)
    try:
        with file.open(encoding="utf-8") as opened:
            return load_yaml(opened.read(MOST_CHARACTERS + 1))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"must be YAML, got {_in_one_line(error)}") from error


def load_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        yaml.YAMLError: it is none, or is too large; the error has no copy of the text.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"more than {MOST_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=Yaml12Loader)
    except ValueError as error:  # of PyYAML, for a character beyond Unicode such as "\UFFFFFFFF"
        raise yaml.YAMLError(str(error)) from error


def _in_one_line(error: Exception) -> str:
    """Describe an error of the parser with its place, without a copy of the text."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _require_plain_tag(loader: Yaml12Loader, node: yaml.Node | None) -> None:
    """Raise for a tag that YAML's JSON schema does not have, or that does not fit its value."""
    if node is None or isinstance(node, _STRUCTURES.get(node.tag, ())):
        return
    if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_PREFIX):
        implicit = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        is_integral = implicit == f"{_PREFIX}int" and node.tag == f"{_PREFIX}float"
        if implicit == node.tag or is_integral:
            return
    raise _problem(f"a tag that does not fit its value, {shown(node.tag)}", node.start_mark)


def _problem(problem: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _integer(text: str) -> int:
    """Parse an integer; one with more digits than Python parses becomes one of that size."""
    try:
        return int(text, 10)
    except ValueError:
        return int(10 ** (len(text) - 1))  # too large for any setting, whatever its digits


Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    Yaml12Loader.add_implicit_resolver(
        f"{_PREFIX}{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )
Yaml12Loader.add_constructor(f"{_PREFIX}int", lambda _, node: _integer(node.value))
Yaml12Loader.add_constructor(f"{_PREFIX}float", lambda _, node: float(node.value))
