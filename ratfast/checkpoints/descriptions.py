"""What the pickles of PyTorch may name, and the descriptions built in place of the objects of torch and numpy."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ratfast.checkpoints.pickle_machine import Buildable, Global, Machine, PickleError, hashable

_LARGEST = 2**62
_MAX_DIMENSIONS = 64  # numpy's limit
_ITEM_BYTES = 64  # of an item in a dict, about
_NUMPY_CODES = re.compile(r"[<>]?(b1|[iu][1248]|f[248]|U[0-9]{1,3})")


@dataclass(frozen=True, eq=False)
class Storage:
    """A storage of which a pickle speaks.

    Attributes:
        key: its name in the file.
        dtype: torch's name of the type of its elements; "uint8" for one that has none.
        start: the first element that belongs to it, within the one that is stored.
        numel: number of elements.
    """

    key: str
    dtype: str
    start: int
    numel: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of which a pickle speaks.

    Attributes:
        storage: where its elements are.
        dtype: torch's name of their type.
        offset: of the first of them, in elements.
        shape: sizes.
        strides: in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unsupported:
    """A tensor of a kind that is not read, such as a sparse one; `kind` says which."""

    kind: str


class Namespace(Buildable):
    """An object whose attributes are plain values: argparse.Namespace."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}

    def set_state(self, machine: Machine, state: Any) -> None:
        """Takes up the attributes, a dict."""
        if type(state) is not dict:
            raise PickleError("a Namespace in it has attributes that are no dict")
        machine.charge(_ITEM_BYTES * len(state))
        self.attributes.update(state)


class NumpyType(Buildable):
    """A numpy.dtype of numbers or text."""

    def __init__(self, code: str):
        self.code = code

    def set_state(self, machine: Machine, state: Any) -> None:
        """Takes up the byte order, the one part of numpy's state that plain numbers have."""
        order = state[1] if type(state) is tuple and len(state) >= 5 else None
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise PickleError("a numpy type in it is not that of plain numbers")
        if order in "<>":
            self.code = order + self.code.lstrip("<>=|")


class NumpyArray(Buildable):
    """A numpy.ndarray of numbers or text; `values` is its content as nested lists."""

    def __init__(self) -> None:
        self.values: Any = []

    def set_state(self, machine: Machine, state: Any) -> None:
        """Takes up numpy's (version, shape, type, whether in Fortran's order, bytes)."""
        if type(state) is not tuple or len(state) != 5:
            raise PickleError("a numpy array in it is damaged")
        _, shape, dtype, fortran, data = state
        self.fill(machine, shape, dtype, "F" if fortran is True else "C", data)

    def fill(self, machine: Machine, shape: Any, dtype: Any, order: str, data: Any) -> None:
        """Sets `values`."""
        kind = _numpy_type(dtype)
        sizes = _sizes(shape, "a numpy array")
        raw = _raw(data)
        machine.charge(8 * len(raw))
        if len(sizes) > 32 or kind.itemsize * math.prod(sizes) != len(raw):
            raise PickleError("a numpy array in it has another size than its bytes")
        elements = np.frombuffer(raw, kind) if raw else np.empty(0, kind)
        self.values = _values(elements.reshape(sizes, order=order)) if raw else []


def make_table() -> dict[str, Global]:
    """Everything that a pickle may name, by `module.attribute`."""
    builders: dict[str, Callable[[Machine, tuple[Any, ...]], Any] | None] = {
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _ordered_dict,
        "argparse.Namespace": _namespace,
        "_codecs.encode": _encoded,
        "torch.Size": _size,
        "torch.device": _device,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.serialization._get_layout": _layout,
        "torch.Tensor": None,
        "torch.nn.parameter.Parameter": None,
        "numpy.dtype": _dtype,
        "numpy.ndarray": None,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.numeric._frombuffer": _from_buffer,
        "numpy._core.numeric._frombuffer": _from_buffer,
    }
    for module in ("builtins", "__builtin__"):
        builders |= {
            f"{module}.set": _set,
            f"{module}.frozenset": _frozenset,
            f"{module}.complex": _complex,
            f"{module}.bytes": _bytes,
            f"{module}.bytearray": _bytes,
        }
    for module in ("pathlib", "pathlib._local"):
        builders |= {
            f"{module}.{kind}": _path
            for kind in ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
        }
    for name, kind in _OTHER_TENSORS.items():
        builders[f"torch._utils.{name}"] = _unsupported(kind)
    for name in (*_DTYPES, *_QUANTISATIONS):
        builders[f"torch.{name}"] = None
    for module in ("torch", "torch.storage"):
        for name in STORAGE_TYPES:
            builders[f"{module}.{name}"] = None
    return {name: Global(name, build) for name, build in builders.items()}


STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""Torch's names of storages, and of the types of their elements."""

_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("complex32", "complex64", "complex128", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"),
    *(
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ),
)
_QUANTISATIONS = (
    *("per_tensor_affine", "per_channel_affine", "per_tensor_symmetric", "per_channel_symmetric"),
    "per_channel_affine_float_qparams",
)
_OTHER_TENSORS = {
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "a meta tensor",
    "_rebuild_device_tensor_from_numpy": "of another device's own format",
    "_rebuild_device_tensor_from_cpu_tensor": "of another device's own format",
    "_rebuild_wrapper_subclass": "of a class of its own",
}


def _ordered_dict(machine: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    if not arguments:
        return result
    (items,) = _exactly(arguments, 1, "a dict")
    if type(items) is dict:
        machine.charge(_ITEM_BYTES * len(items))
        return dict(items)
    if type(items) is not list:
        raise PickleError("a dict in it is made of something else than pairs")
    machine.charge(_ITEM_BYTES * len(items))
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise PickleError("a dict in it is made of something else than pairs")
        result[hashable(pair[0])] = pair[1]
    return result


def _namespace(machine: Machine, arguments: tuple[Any, ...]) -> Namespace:
    _exactly(arguments, 0, "a Namespace")
    return Namespace()


def _encoded(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes bytes: as text whose characters are their numbers."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
        raise PickleError("it encodes something else than bytes")
    machine.charge(len(arguments[0]))
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError:
        raise PickleError("bytes in it are damaged") from None


def _bytes(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    if not arguments:
        return b""
    if len(arguments) == 1 and type(arguments[0]) in (bytes, bytearray):
        machine.charge(len(arguments[0]))
        return bytes(arguments[0])
    return _encoded(machine, arguments)


def _members(machine: Machine, arguments: tuple[Any, ...]) -> list[Any]:
    if not arguments:
        return []
    (items,) = _exactly(arguments, 1, "a set")
    if type(items) not in (list, tuple):
        raise PickleError("a set in it is made of something else than a list")
    machine.charge(_ITEM_BYTES // 2 * len(items))
    return [hashable(item) for item in items]


def _set(machine: Machine, arguments: tuple[Any, ...]) -> set[Any]:
    return set(_members(machine, arguments))


def _frozenset(machine: Machine, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_members(machine, arguments))


def _complex(machine: Machine, arguments: tuple[Any, ...]) -> complex:
    real, imaginary = _exactly(arguments, 2, "a complex number")
    if type(real) is not float or type(imaginary) is not float:
        raise PickleError("a complex number in it is not made of two numbers")
    return complex(real, imaginary)


def _path(machine: Machine, arguments: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in arguments):
        raise PickleError("a path in it is not made of text")
    machine.charge(sum(map(len, arguments)))
    return str(pathlib.PurePosixPath(*arguments))


def _size(machine: Machine, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    (sizes,) = _exactly(arguments, 1, "a shape")
    machine.charge(len(sizes) if type(sizes) in (list, tuple) else 0)
    return _sizes(sizes, "a shape")


def _device(machine: Machine, arguments: tuple[Any, ...]) -> str:
    if not 1 <= len(arguments) <= 2 or type(arguments[0]) is not str or len(arguments[0]) > 32:
        raise PickleError("a device in it is damaged")
    if not all(type(index) is int and -1 <= index < 1024 for index in arguments[1:]):
        raise PickleError("a device in it is damaged")
    return ":".join(map(str, arguments))


def _rebuild_tensor(machine: Machine, arguments: tuple[Any, ...]) -> Tensor:
    storage, *place = _exactly(arguments, 4, "a tensor")
    return _tensor(storage, None, *place)


def _rebuild_tensor_v2(machine: Machine, arguments: tuple[Any, ...]) -> Tensor | Unsupported:
    if len(arguments) not in (6, 7):
        raise PickleError("a tensor in it is damaged")
    storage, *place = arguments[:4]
    return _with_marks(_tensor(storage, None, *place), arguments[6:])


def _rebuild_tensor_v3(machine: Machine, arguments: tuple[Any, ...]) -> Tensor | Unsupported:
    if len(arguments) not in (7, 8) or not isinstance(arguments[6], Global):
        raise PickleError("a tensor in it is damaged")
    storage, *place = arguments[:4]
    return _with_marks(_tensor(storage, arguments[6].name.removeprefix("torch."), *place), arguments[7:])


def _rebuild_parameter(machine: Machine, arguments: tuple[Any, ...]) -> Tensor | Unsupported:
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], (Tensor, Unsupported)):
        raise PickleError("a parameter in it is damaged")
    return arguments[0]


def _rebuild_from_type(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A tensor with attributes of its own, which are no part of its values."""
    function, kind, inner, _ = _exactly(arguments, 4, "a tensor")
    names = ("torch.Tensor", "torch.nn.parameter.Parameter")
    builders = (_rebuild_tensor, _rebuild_tensor_v2, _rebuild_tensor_v3, _rebuild_parameter)
    if not isinstance(function, Global) or function.build not in builders or type(inner) is not tuple:
        raise PickleError("a tensor in it is damaged")
    if not isinstance(kind, Global) or kind.name not in names:
        raise PickleError("a tensor in it is damaged")
    return function.build(machine, inner)


def _layout(machine: Machine, arguments: tuple[Any, ...]) -> str:
    (name,) = _exactly(arguments, 1, "a memory layout")
    if type(name) is not str:
        raise PickleError("a memory layout in it is none")
    return name


def _unsupported(kind: str) -> Callable[[Machine, tuple[Any, ...]], Unsupported]:
    def build(machine: Machine, arguments: tuple[Any, ...]) -> Unsupported:
        return Unsupported(kind)

    return build


def _dtype(machine: Machine, arguments: tuple[Any, ...]) -> NumpyType:
    code = arguments[0] if arguments else None
    if type(code) is not str or not 0 < len(code) <= 8:
        raise PickleError("a numpy type in it is not that of plain numbers")
    return NumpyType(code)


def _scalar(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    dtype, data = _exactly(arguments, 2, "a numpy number")
    kind, raw = _numpy_type(dtype), _raw(data)
    machine.charge(8 * len(raw))
    if len(raw) != kind.itemsize:
        raise PickleError("a numpy number in it has another size than its type")
    return _values(np.frombuffer(raw, kind)[0]) if raw else ""


def _reconstruct(machine: Machine, arguments: tuple[Any, ...]) -> NumpyArray:
    kind = arguments[0] if arguments else None
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise PickleError("a numpy array in it is of a class of its own")
    return NumpyArray()


def _from_buffer(machine: Machine, arguments: tuple[Any, ...]) -> NumpyArray:
    data, dtype, shape, order = _exactly(arguments, 4, "a numpy array")
    array = NumpyArray()
    array.fill(machine, shape, dtype, "F" if order == "F" else "C", data)
    return array


def _tensor(storage: Any, dtype: str | None, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise PickleError("a tensor in it has no storage")
    sizes, steps = _sizes(shape, "a tensor"), _sizes(strides, "a tensor")
    (first,) = _sizes((offset,), "a tensor")
    if len(sizes) != len(steps):
        raise PickleError("a tensor in it has a shape that its strides do not fit")
    return Tensor(storage, storage.dtype if dtype is None else dtype, first, sizes, steps)


def _with_marks(tensor: Tensor, marks: tuple[Any, ...]) -> Tensor | Unsupported:
    """The tensor, unless it is to be read as its negative or conjugate."""
    if marks and marks[0]:
        if type(marks[0]) is not dict:
            raise PickleError("a tensor in it has marks that are no dict")
        if any(value for value in marks[0].values()):
            return Unsupported("stored as the negative or conjugate of its values")
    return tensor


def _numpy_type(dtype: Any) -> np.dtype:
    if not isinstance(dtype, NumpyType) or not _NUMPY_CODES.fullmatch(dtype.code):
        raise PickleError("a numpy value in it is neither a number nor text")
    return np.dtype(dtype.code)


def _values(array: Any) -> Any:
    try:
        return array.tolist()
    except ValueError:  # text out of the range of Unicode
        raise PickleError("a numpy value in it is neither a number nor text") from None


def _raw(data: Any) -> bytes:
    if type(data) is str:  # bytes that Python 2 wrote
        return data.encode("utf-8", "surrogatepass")
    if type(data) not in (bytes, bytearray):
        raise PickleError("a numpy value in it has no bytes")
    return bytes(data)


def _sizes(values: Any, what: str) -> tuple[int, ...]:
    if type(values) not in (list, tuple) or len(values) > _MAX_DIMENSIONS:
        raise PickleError(f"{what} in it has sizes that are none")
    if not all(type(value) is int and 0 <= value <= _LARGEST for value in values):
        raise PickleError(f"{what} in it has sizes that are none")
    return tuple(values)


def _exactly(arguments: tuple[Any, ...], count: int, what: str) -> tuple[Any, ...]:
    if len(arguments) != count:
        raise PickleError(f"{what} in it is made of {len(arguments)} parts, expected {count}")
    return arguments
