"""Record calls of a model's modules without changing its outputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)
_Record = TypeVar("_Record")


def modules_of(model: nn.Module, kind: type[_Module]) -> dict[str, _Module]:
    """Return the modules of a class, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


@contextmanager
def recorded(
    modules: Mapping[str, _Module],
    record: Callable[[str, _Module, tuple[Any, ...], dict[str, Any], Any], _Record],
) -> Iterator[list[_Record]]:
    """Record each call of the given modules.

    Args:
        modules: modules by name.
        record: function of the name, the module, its arguments, its keyword arguments and its
            output that returns the record. An exception in it ends the forward pass.

    Yields:
        List that grows with each call, in the order of the calls.
    """
    calls: list[_Record] = []

    def hook_of(name: str) -> Any:
        def hook(
            module: _Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            calls.append(record(name, module, args, kwargs, output))

        return hook

    handles = [
        module.register_forward_hook(hook_of(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
