"""A reader of pickles that can only build data: an interpreter of their opcodes without imports or calls.

The opcodes and the form of their arguments are those of the standard library's table (`pickletools`), protocols 0 to
5. What a pickle names is looked up in a fixed table of ours; what the table lacks is refused before anything is
built from it. Every opcode costs time and memory in proportion to the bytes it occupies; those that copy what is there
already (`charge`) may do so in proportion to the file's size only. There is no recursion, so no nesting is too deep.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_COPIES = 16  # bytes that may be copied for each byte of the pickle...
_FREE = 1 << 20  # ...and in any case
_LARGEST_KEY = 2**63  # Python does not spread the hashes of larger ones...
_LARGEST_IN_TUPLE = 2**31  # ...and in tuples those of any that can be chosen freely
_HIGHEST_PROTOCOL = 5
_LINE_BYTES = 128  # looked through at a time for the end of a line


class PickleError(Exception):
    """What is wrong with a pickle, as a phrase."""


class ForbiddenGlobal(PickleError):
    """The pickle names something that is neither a tensor nor a plain value; the text is its name."""


class MemoryFile:
    """Bytes in memory as a file to read from, without a copy of the whole.

    Args:
        memory: a contiguous buffer of bytes.
        position: where to start.
    """

    def __init__(self, memory: Any, position: int = 0):
        self._view = memoryview(memory)
        self.position = position

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or as many as there are."""
        piece = bytes(self._view[self.position : self.position + count])
        self.position += len(piece)
        return piece

    def readline(self) -> bytes:
        """The bytes up to and with the next line feed."""
        parts = []
        while part := self.read(_LINE_BYTES):
            end = part.find(b"\n") + 1
            if end:
                self.position -= len(part) - end
                parts.append(part[:end])
                break
            parts.append(part)
        return b"".join(parts)


class Global:
    """A name out of the table: what stands for a class or function of a pickle.

    Args:
        name: `module.attribute`.
        build: makes the value that calling it would make, from a tuple of arguments; None if it is never called.
    """

    def __init__(self, name: str, build: Callable[[Machine, tuple[Any, ...]], Any] | None = None):
        self.name = name
        self.build = build


class Buildable:
    """A description that takes up a state after it was built (the opcode BUILD)."""

    def set_state(self, machine: Machine, state: Any) -> None:
        """Takes up `state`."""
        raise NotImplementedError


class Machine:
    """Reads one pickle.

    Args:
        table: what may be named, by `module.attribute`.
        persistent: makes a value of what a persistent id says; None where there are none.
        size: bytes of the file, to which all that is built stays in proportion.
    """

    def __init__(
        self,
        table: Mapping[str, Global],
        persistent: Callable[[Any], Any] | None,
        size: int,
    ):
        self._table = table
        self._persistent = persistent
        self._allowance = _COPIES * size + _FREE
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def charge(self, count: int) -> None:
        """Notes that about `count` bytes are going to be copied.

        Raises:
            PickleError: more than the file's size justifies.
        """
        self._allowance -= count
        if self._allowance < 0:
            raise PickleError("it unfolds to more than its size justifies")

    def run(self, file: MemoryFile) -> Any:
        """Reads a pickle from where the file stands to its end, the opcode STOP.

        Raises:
            ForbiddenGlobal: it names what the table lacks.
            PickleError: it is malformed, or uses what tensors and plain values do not need.
        """
        self._stack, self._marks, self._memo = [], [], {}
        read = file.read
        while True:
            code = read(1)
            operation = _OPERATIONS.get(code)
            if operation is None:
                if code == b".":
                    return self._pop()
                raise PickleError(_unknown(code))
            reader, act = operation
            try:
                argument = reader(file) if reader is not None else None
            except (ValueError, OverflowError, UnicodeError) as error:
                raise PickleError(_phrase(error)) from None
            act(self, argument)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("it takes a value that is not there")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("it takes a value that is not there")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("it takes values that are not there")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _pop_one(self, _: None) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _protocol(self, number: int) -> None:
        if number > _HIGHEST_PROTOCOL:
            raise PickleError(f"it is of protocol {number}, expected at most {_HIGHEST_PROTOCOL}")

    def _text(self, value: str) -> None:
        self._push(_python2_text(value))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _append(self, _: None) -> None:
        value = self._pop()
        self._typed(list, "appends to").append(value)

    def _appends(self, _: None) -> None:
        values = self._pop_mark()
        self._typed(list, "appends to").extend(values)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._typed(dict, "sets an item of")[hashable(key)] = value

    def _set_items(self, _: None) -> None:
        values = self._pop_mark()
        self._fill(self._typed(dict, "sets items of"), values)

    def _dict(self, _: None) -> None:
        target: dict[Any, Any] = {}
        self._fill(target, self._pop_mark())
        self._push(target)

    def _fill(self, target: dict[Any, Any], values: list[Any]) -> None:
        if len(values) % 2:
            raise PickleError("it has a key without a value")
        for index in range(0, len(values), 2):
            target[hashable(values[index])] = values[index + 1]

    def _add_items(self, _: None) -> None:
        values = self._pop_mark()
        self._typed(set, "adds to").update(map(hashable, values))

    def _typed(self, kind: type, verb: str) -> Any:
        target = self._top()
        if type(target) is not kind:
            raise PickleError(f"it {verb} something that is no {kind.__name__}")
        return target

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError(f"it recalls value {index}, which it never noted")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        if not 0 <= index < _LARGEST_KEY:
            raise PickleError("it notes a value under a number that none has")
        self._memo[index] = self._top()

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._top()

    def _global(self, names: str) -> None:
        module, _, attribute = names.partition(" ")
        self._push(self._named(module, attribute))

    def _stack_global(self, _: None) -> None:
        attribute, module = self._pop(), self._pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise PickleError("it names something by other than text")
        self._push(self._named(module, attribute))

    def _named(self, module: str, attribute: str) -> Global:
        name = f"{module}.{attribute}"
        found = self._table.get(name)
        if found is None:
            name = name if name.isprintable() else ascii(name)
            raise ForbiddenGlobal(name if len(name) <= 120 else name[:117] + "...")
        return found

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.build is None:
            raise PickleError("it calls something that is no function")
        if type(arguments) is not tuple:
            raise PickleError(f"it calls {function.name} with other than a tuple of arguments")
        self._push(function.build(self, arguments))

    def _build(self, _: None) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Buildable):
            target.set_state(self, state)
        elif type(target) is dict:
            # The attributes of a state dict (`_metadata`, versions of its modules) are no part of its values.
            if type(state) not in (dict, tuple):
                raise PickleError("it gives a dict a state that is none")
        else:
            raise PickleError(f"it gives a state to a {type(target).__name__}, which has none")

    def _persistent_id(self, _: None) -> None:
        identity = self._pop()
        if self._persistent is None:
            raise PickleError("it refers to data outside itself")
        self._push(self._persistent(identity))


def hashable(key: Any) -> Any:
    """A key of a dict or member of a set: only what hashes in constant time, and not at will to equal hashes."""
    if type(key) is tuple:
        simple = len(key) <= 4 and all(_is_simple(part, _LARGEST_IN_TUPLE) for part in key)
    else:
        simple = _is_simple(key, _LARGEST_KEY) or type(key) is float
    if not simple:
        raise PickleError(f"it uses a {type(key).__name__} as a key, expected text or a number")
    return key


def _is_simple(key: Any, largest: int) -> bool:
    if type(key) is int:
        return -largest < key < largest
    return key is None or type(key) in (str, bytes, bool)


def _python2_text(value: str) -> str | bytes:
    """A string of Python 2, whose bytes the table's readers give as Latin-1: text if it is UTF-8, else bytes."""
    raw = value.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _phrase(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"one of its values is damaged ({text[:120]})"


def _unknown(code: bytes) -> str:
    if not code:
        return "it ends before its end mark"
    known = pickletools.code2op.get(code.decode("latin-1"))
    if known is None:
        return f"the byte {code.hex()} in it is no instruction"
    return f"it uses {known.name}, which tensors and plain values do not need"


_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine._protocol,
    "FRAME": lambda machine, size: None,
    "MARK": Machine._mark,
    "POP": Machine._pop_one,
    "POP_MARK": lambda machine, _: machine._pop_mark() and None,
    "DUP": lambda machine, _: machine._push(machine._top()),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "BINSTRING": Machine._text,
    "SHORT_BINSTRING": Machine._text,
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "APPEND": Machine._append,
    "APPENDS": Machine._appends,
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "DICT": Machine._dict,
    "SETITEM": Machine._set_item,
    "SETITEMS": Machine._set_items,
    "EMPTY_SET": lambda machine, _: machine._push(set()),
    "ADDITEMS": Machine._add_items,
    "FROZENSET": lambda machine, _: machine._push(frozenset(map(hashable, machine._pop_mark()))),
    "GET": Machine._get,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,  # a class called with arguments, to our table the same
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
} | dict.fromkeys(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    ),
    Machine._push,
)


def _read_names(file: MemoryFile) -> str:
    """The argument of GLOBAL, two lines; the table's own reader would undo escapes, which no name has."""
    lines = file.readline(), file.readline()
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError("a name without an end")
    return " ".join(line[:-1].decode() for line in lines)


def _reader(opcode: pickletools.OpcodeInfo) -> Callable[[MemoryFile], Any] | None:
    if opcode.name == "GLOBAL":
        return _read_names
    return opcode.arg.reader if opcode.arg is not None else None


_OPERATIONS = {
    opcode.code.encode("latin-1"): (_reader(opcode), _ACTIONS[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _ACTIONS
}
