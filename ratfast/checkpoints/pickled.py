"""PyTorch's pickled checkpoints, read without running anything they contain."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratfast.checkpoints.header import open_input
from ratfast.errors import InputError

_PLACES = ("state_dict", "model", "state_dict_ema", "model_dict")


class _NumpyDType:
    """Stands for numpy.dtype while a file is read: remembers the code, builds nothing."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        pass


def _numpy_scalar(dtype: _NumpyDType, data: bytes) -> Any:
    """Stands for numpy's constructor of scalars, for the plain numbers in DomainBed's hyperparameters."""
    if not isinstance(dtype, _NumpyDType) or np.dtype(dtype.code).kind not in "biuf":
        raise pickle.UnpicklingError("a numpy scalar that is not a number")
    return np.frombuffer(data, dtype.code, 1)[0].item()


# Plain numbers of numpy, under the names that it has pickled them by: torch does not allow them by itself.
_SAFE = [
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_NumpyDType, "numpy.dtype"),
]


def load_pickled(path: str | os.PathLike[str], *, mapped: bool = False) -> dict[str, Tensor]:
    """Reads the state dict in a file of `torch.save`, on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors in the file where its format allows that (torch's since 1.6).

    Returns:
        The tensors by name; those that were saved sharing memory share it again.

    Raises:
        InputError: the file cannot be opened, would run code, is damaged, or holds no state dict.
    """
    return _state_dict(path, read_content(path, mapped=mapped))


def read_content(path: str | os.PathLike[str], *, mapped: bool = True) -> Any:
    """Everything that a file of `torch.save` holds: tensors, on the CPU, and plain values.

    Raises:
        InputError: the file cannot be opened, would run code, or is damaged.
    """
    with open_input(path) as file:
        mapped = mapped and file.read(4) == b"PK\x03\x04"
    try:
        with torch.serialization.safe_globals(_SAFE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types of storage that torch itself deprecated
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, error)) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint: {_first_line(error)}") from None


def _state_dict(path: str | os.PathLike[str], content: Any) -> dict[str, Tensor]:
    found = content
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        found = next((content[place] for place in _PLACES if isinstance(content.get(place), Mapping)), None)
    if not isinstance(found, Mapping) or not found:
        raise InputError(
            f"{path} holds no state dict, neither by itself nor under any of {', '.join(map(repr, _PLACES))}"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} holds a {type(value).__name__} under {name!r}, where a state dict has a tensor"
            )
    return {name: value.detach() for name, value in found.items()}


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]


def _refusal(path: str | os.PathLike[str], error: Exception) -> str:
    # torch's own message advises to disable the protection, which is the last thing to repeat.
    found = re.search(r"GLOBAL:? ([\w.]+)", str(error))
    if found:
        return f"{path} was not read, and nothing in it run: besides tensors it holds {found[1].rstrip('.')}"
    return f"{path} was not read: it holds more than tensors and plain values, or is damaged"
