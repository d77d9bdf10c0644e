"""The element types that ratfast reads and writes: one table for torch, safetensors and the native code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: torch's and numpy's name, such as `"float32"`; also what the native module is told.
        code: the name in a safetensors header, such as `"F32"`.
        itemsize: bytes per element.
        is_floating: whether averages and optimizer steps may touch it.
    """

    name: str
    code: str
    itemsize: int
    is_floating: bool


_ALL = (
    DType("float64", "F64", 8, True),
    DType("float32", "F32", 4, True),
    DType("float16", "F16", 2, True),
    DType("bfloat16", "BF16", 2, True),
    DType("int64", "I64", 8, False),
    DType("int32", "I32", 4, False),
    DType("int16", "I16", 2, False),
    DType("int8", "I8", 1, False),
    DType("uint64", "U64", 8, False),
    DType("uint32", "U32", 4, False),
    DType("uint16", "U16", 2, False),
    DType("uint8", "U8", 1, False),
    DType("bool", "BOOL", 1, False),
)

BY_NAME = {dtype.name: dtype for dtype in _ALL}
BY_CODE = {dtype.code: dtype for dtype in _ALL}
