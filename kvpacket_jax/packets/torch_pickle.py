"""The pickle in a torch file, read as plain values: nothing in it can run, name or change anything.

Only the opcodes that files of tensors and settings have are known. A name stays a text, and what
would be called with it becomes a description.
"""

import pickletools
from typing import Any, NamedTuple

MAX_BYTES = 1 << 20  # of a pickle; an adapter's has two thousand
MAX_VALUES = 10_000  # that it numbers: an adapter's numbers under a hundred
MAX_OPCODES = 1 << 18

ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
STORAGES = ("torch FloatStorage", "torch BFloat16Storage")

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split()  # their arguments
)
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A name that the pickle asks for."""

    text: str  # module and name


class Storage(NamedTuple):
    """Where a tensor's numbers are."""

    type: str  # of STORAGES
    key: str  # the name of its entry
    size: int  # numbers


class Tensor(NamedTuple):
    """A tensor's description."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def load(data: bytes) -> Any:
    """The value of a pickle: dicts, lists, tuples, texts, numbers and Tensors.

    Raises ValueError for anything else, and whatever `pickletools` raises for what is no pickle.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"its pickle has over {MAX_BYTES} bytes")
    machine = _Machine()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > MAX_OPCODES:
            raise ValueError(f"its pickle has over {MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            return machine.pop()
        machine.run(opcode.name, argument)
    raise ValueError("its pickle has no end")


class _Machine:
    """A stack, a stack of stacks for marks, and a memo, as pickles are defined."""

    def __init__(self):
        self._stack: list = []
        self._marked: list[list] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self._stack:
            raise ValueError("its pickle takes what it never put")
        return self._stack.pop()

    def run(self, name: str, argument: Any) -> None:
        """One opcode with its argument."""
        push = self._stack.append
        if name in VALUES:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name in TUPLES:
            push(tuple([self.pop() for _ in range(TUPLES[name])][::-1]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._put(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            push(self._memo[argument])
        elif name == "GLOBAL":
            push(_name(argument))
        elif name == "BINPERSID":
            push(_storage(self.pop()))
        elif name == "REDUCE":
            arguments = self.pop()
            push(_called(self.pop(), arguments))
        elif name == "MARK":
            self._marked.append(self._stack)
            self._stack = []
        elif name != "PROTO":
            self._collect(name)

    def _put(self, place: int) -> None:
        if place > MAX_VALUES:
            raise ValueError(f"it numbers over {MAX_VALUES} values")
        value = self.pop()
        self._stack.append(value)
        self._memo[place] = value

    def _collect(self, name: str) -> None:
        """Opcodes that put values into a container."""
        if name in ("APPEND", "SETITEM"):
            values = [self.pop() for _ in range(1 + (name == "SETITEM"))][::-1]
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            if not self._marked:
                raise ValueError("its pickle takes what it never put")
            values, self._stack = self._stack, self._marked.pop()
        else:
            raise ValueError(f"its pickle has the opcode {name}, which no adapter's has")
        if name == "TUPLE":
            self._stack.append(tuple(values))
            return
        target = self.pop()
        self._stack.append(target)
        if name.startswith("APPEND") and type(target) is list:
            target.extend(values)
        elif name.startswith("SETITEM") and type(target) is dict and len(values) % 2 == 0:
            keys = values[::2]
            if not all(isinstance(k, str | int) for k in keys):  # a deep tuple's hash is deep too
                raise ValueError("it has a dict with keys that are neither texts nor numbers")
            target.update(zip(keys, values[1::2], strict=True))
        else:
            raise ValueError(f"its pickle has the opcode {name} for a {type(target).__name__}")


def _name(text: str) -> Name:
    if text not in (ORDERED_DICT, REBUILD_TENSOR, *STORAGES):
        raise ValueError(f"it asks for {text.replace(' ', '.')[:80]}")
    return Name(text)


def _storage(pid: Any) -> Storage:
    match pid:
        case ("storage", Name(kind), str(key), _, int(size)) if kind in STORAGES:
            return Storage(kind, key, size)
    raise ValueError("it has an unknown kind of object")


def _called(name: Any, arguments: Any) -> Any:
    match name, arguments:
        case Name("collections OrderedDict"), ():
            return {}
        case Name("torch._utils _rebuild_tensor_v2"), (
            Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(stride),
            *_,
        ) if len(shape) < 8 and all(type(n) is int for n in (*shape, *stride)):
            return Tensor(storage, offset, shape, stride)
    raise ValueError("it calls something with arguments that no adapter's file has")
