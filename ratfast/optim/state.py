"""The optimizer's state as torch.optim keeps it, `{parameter: {name: value}}`, which tells when it was changed.

A step relies on where the states lie in memory. That is found out once; these dictionaries count what is put into
them or taken out, so that a step sees at a glance whether it still holds, however many parameters there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor


class Changes:
    """Counts changes.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        self.count = 0


def _counting(name: str) -> Callable[..., Any]:
    """A method of dict that counts as a change."""
    original = getattr(dict, name)

    def method(self: _Counted, *args: Any, **kwargs: Any) -> Any:
        self.changes.count += 1
        return original(self, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = original.__doc__
    return method


class _Counted(dict):  # type: ignore[type-arg]
    """A dictionary that counts its changes; a plain one again where it is copied or pickled."""

    def __init__(self, content: Iterable[Any] | Mapping[Any, Any], changes: Changes):
        super().__init__(content)
        self.changes = changes

    __setitem__ = _counting("__setitem__")
    __delitem__ = _counting("__delitem__")
    __ior__ = _counting("__ior__")
    clear = _counting("clear")
    pop = _counting("pop")
    popitem = _counting("popitem")
    setdefault = _counting("setdefault")
    update = _counting("update")

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (dict(self),))


class ParameterState(_Counted):
    """The states of one parameter by name."""


class StateTable(_Counted):
    """The states of all parameters; a parameter that is not there gets an empty entry when it is asked for.

    Args:
        content: as torch.optim has it.
    """

    def __init__(self, content: Mapping[Any, Any] = MappingProxyType({})):
        changes = Changes()
        super().__init__(
            {
                key: ParameterState(value, changes) if isinstance(value, Mapping) else value
                for key, value in content.items()
            },
            changes,
        )

    def __missing__(self, key: Tensor) -> ParameterState:
        entry = ParameterState((), self.changes)
        self[key] = entry
        return entry

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Mapping) and not isinstance(value, ParameterState):
            value = ParameterState(value, self.changes)
        super().__setitem__(key, value)
