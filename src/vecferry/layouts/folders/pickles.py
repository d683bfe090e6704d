"""Pickles read as data: a small machine of our own that can build values and do nothing else.

Python's unpickler imports and calls what a file names. This one never imports and never looks a name up:
it knows about sixty opcodes and a fixed table of names (`vecferry.layouts.folders.inert`), each of which
builds a plain value. Any other name, and every opcode that could reach further (persistent ids, extension
registry, INST, OBJ, out-of-band buffers), raises `UnsafePickleError`.

The file is walked twice. The first walk checks every opcode and length and notes which memo entries are
ever fetched; the second builds values and forgets those that nobody asks for. A ``keep`` callback may take
records out of it as they are finished, so that the memory does not grow with the file.

The opcodes are those of protocols 0 to 5, described in Python's own ``pickletools``.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vecferry.errors import CorruptDataError, NotFoundError, UnsafePickleError
from vecferry.layouts.folders.inert import Inert, Name, check_key, lookup

_MARK = object()
_FIXED = {  # opcode → bytes of argument
    **dict.fromkeys(b"(.012NQRbadeolstu)]}\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94", 0),
    **dict.fromkeys(b"Khq\x80\x82", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
    **dict.fromkeys(b"\x97\x98", 0),
}
_COUNTED = {  # opcode → how its length is written
    **dict.fromkeys(b"U\x8cC\x8a", struct.Struct("<B")),
    **dict.fromkeys(b"XBT\x8b", struct.Struct("<I")),
    **dict.fromkeys(b"\x8d\x8e\x96", struct.Struct("<Q")),
}
_LINES = {**dict.fromkeys(b"FILSVgpP", 1), **dict.fromkeys(b"ci", 2)}
_REFUSED = {
    ord("P"): "PERSID",
    ord("Q"): "BINPERSID",
    ord("i"): "INST",
    ord("o"): "OBJ",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}

_COUNT, _LINE, _REFUSE, _UNKNOWN = -1, -2, -3, -4


def _shape(code: int) -> int:
    if code in _REFUSED:
        return _REFUSE
    if code in _FIXED:
        return _FIXED[code]
    return _COUNT if code in _COUNTED else _LINE if code in _LINES else _UNKNOWN


_SHAPES = [_shape(code) for code in range(256)]
"""By opcode: the bytes of its argument, or how they are told."""

_FLOATS = re.compile(rb"(?:G.{8}){2,}", re.DOTALL)
"""Numbers in a row: those of a vector are read in one step."""

Keep = Callable[[Any], Any]
"""Takes a finished item and returns what stands for it from then on."""


def read_pickle(path: Path, *, keep: Keep | None = None, keep_document: Keep | None = None) -> Any:
    """The value in a pickle file, built from plain data only.

    Args:
        path: the file; it is mapped, not loaded.
        keep: called with each item of the outermost list, in order.
        keep_document: called with each finished document stand-in (see `inert.Document`).

    Raises:
        UnsafePickleError: if it asks for anything outside the allow-list. Nothing of it was run.
        CorruptDataError: if it is truncated or not a pickle.
        NotFoundError: if the file is not there.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _value(Machine(data, str(path), keep, keep_document))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there; check the path") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise _damaged(str(path), error) from error


def parse_pickle(data: bytes, name: str) -> Any:
    """As `read_pickle`, for a pickle that lies inside something else; ``name`` is for messages."""
    return _value(Machine(data, name, None, None))


def _value(machine: Machine) -> Any:
    name = machine.name_of_file
    try:
        return machine.run()
    except (UnsafePickleError, CorruptDataError):
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise _damaged(name, error) from error
    except (ArithmeticError, RecursionError, MemoryError, struct.error) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: object) -> CorruptDataError:
    return CorruptDataError(f"{name} is truncated or not a pickle ({error}); restore it from a backup")


class Machine:
    """One pickle being read. `run` may be called once."""

    def __init__(self, data: Any, name: str, keep: Keep | None, keep_document: Keep | None) -> None:
        self._data = data
        self._name = name
        self._keep = keep
        self._keep_document = keep_document
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._puts = 0
        self._fetched: set[int] = set()
        self._root: list[Any] | None = None
        self._first = True

    @property
    def name_of_file(self) -> str:
        """What messages call it."""
        return self._name

    def run(self) -> Any:  # noqa: PLR0912 - one branch for each kind of opcode
        self._fetched = fetched = self.survey()
        data, position, actions, shapes = self._data, 0, _ACTIONS, _SHAPES
        stack, memo = self._stack, self._memo
        while True:
            code = data[position]
            position += 1
            shape = shapes[code]
            # The four commonest opcodes of records, done here without a call.
            if code == 0x8C:  # SHORT_BINUNICODE
                end = position + 1 + data[position]
                stack.append(data[position + 1 : end].decode("utf-8", "surrogatepass"))
                self._first, position = False, end
            elif code == 0x94:  # MEMOIZE
                if self._puts in fetched:
                    memo[self._puts] = stack[-1]
                self._puts += 1
            elif code == 0x71:  # BINPUT
                if data[position] in fetched:
                    memo[data[position]] = stack[-1]
                self._puts += 1
                position += 1
            elif code == 0x68:  # BINGET
                value = memo[data[position]]
                stack.append(value.finished() if isinstance(value, Inert) and value.done else value)
                self._first, position = False, position + 1
            elif code == 0x2E:  # STOP
                break
            elif code == 0x47 and (floats := _FLOATS.match(data, position - 1)):  # BINFLOATs, a vector
                stack.extend(_numbers(floats[0]))
                self._first, position = False, floats.end()
            elif shape >= 0:
                action = actions[code]
                action(self, data[position : position + shape] if shape else None)
                position += shape
            elif shape == _LINE:
                argument, position = self._line(position, _LINES[code])
                actions[code](self, argument)
            else:
                prefix = _COUNTED[code]
                start = position + prefix.size
                position = start + prefix.unpack_from(data, position)[0]
                actions[code](self, data[start:position])
        value = stack.pop()
        if stack or self._marks:
            raise ValueError("values are left over")
        return value.finished() if isinstance(value, Inert) else value

    def survey(self) -> set[int]:  # noqa: PLR0912
        """Check that every opcode is allowed and lies inside the file; return the memo entries fetched.

        Memo numbers are bounded by the file's length, so that no small file asks for a large table.
        """
        data, size, position, shapes = self._data, len(self._data), 0, _SHAPES
        fetched: set[int] = set()
        try:
            while True:
                code = data[position]
                shape = shapes[code]
                if shape == 0:
                    position += 1
                    if code == 0x2E:
                        return fetched
                elif code == 0x8C:
                    position += 2 + data[position + 1]
                elif code == 0x68:
                    fetched.add(data[position + 1])
                    position += 2
                elif code == 0x47 and (floats := _FLOATS.match(data, position)):
                    position = floats.end()
                elif shape > 0:
                    if code == 0x6A:
                        fetched.add(int.from_bytes(data[position + 1 : position + 5], "little"))
                    position += 1 + shape
                elif shape == _COUNT:
                    prefix = _COUNTED[code]
                    (length,) = prefix.unpack_from(data, position + 1)
                    position += 1 + prefix.size + length
                elif shape == _LINE:
                    argument, position = self._line(position + 1, _LINES[code])
                    if code == 0x67:
                        fetched.add(int(argument))
                else:
                    raise self._unfit(code)
        except IndexError:
            what = "no end" if position == size else "it ends in the middle of a value"
            raise ValueError(what) from None

    def _unfit(self, code: int) -> Exception:
        if code in _REFUSED:
            return UnsafePickleError(self._refusal(f"the opcode {_REFUSED[code]}"))
        return ValueError(f"no opcode {code:#x}")

    def _line(self, position: int, count: int) -> tuple[bytes, int]:
        start = position
        for _ in range(count):
            end = self._data.find(b"\n", position)
            if end < 0:
                raise ValueError("a line has no end")
            position = end + 1
        return self._data[start : position - 1], position

    def _refusal(self, what: str) -> str:
        return (
            f"{self._name} asks for {what}, which no record needs; nothing of it was run. "
            "If you trust the file, load it with its own application and save the records as JSON"
        )

    # -- the stack ----------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._first = False
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack or (self._marks and len(self._stack) <= self._marks[-1]):
            raise ValueError("a value is missing")
        value = self._stack.pop()
        return value.finished() if isinstance(value, Inert) else value

    def pop_mark(self) -> list[Any]:
        at = self._marks.pop()
        items = self._stack[at:]
        del self._stack[at:]
        if not any(issubclass(kind, Inert) for kind in set(map(type, items))):
            return items
        return [item.finished() if isinstance(item, Inert) else item for item in items]

    def top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise ValueError(f"a {kind.__name__} is missing")
        return value

    # -- actions that need more than a line ---------------------------------------------------

    def put(self, number: int) -> None:
        if number in self._fetched:
            self._memo[number] = self._stack[-1]
        self._puts += 1

    def get(self, number: int) -> None:
        value = self._memo[number]
        self.push(value.finished() if isinstance(value, Inert) and value.done else value)

    def new_list(self) -> None:
        value: list[Any] = []
        if self._first and not self._marks:
            self._root = value
        self.push(value)

    def extend(self, items: list[Any]) -> None:
        target: list[Any] = self.top(list)
        keep = self._keep if target is self._root else None
        if keep is not None:
            target.extend(map(keep, items))
        else:
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise ValueError("a dict item lacks its value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def name(self, module: Any, name: Any) -> None:
        found = lookup(module, name) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            raise UnsafePickleError(self._refusal(f"{module!s:.60}.{name!s:.60}"))
        self.push(found)

    def call(self, arguments: Any, *, new: bool) -> None:
        target = self._stack.pop()
        if not isinstance(target, Name) or type(arguments) is not tuple:
            raise UnsafePickleError(self._refusal("a call of something that is not a name"))
        self.push(target.build(*arguments) if not new else target.create(*arguments))

    def build(self, state: Any) -> None:
        target = self._stack[-1]
        if not isinstance(target, Inert):
            raise UnsafePickleError(self._refusal(f"to change a {type(target).__name__}"))
        target.set_state(state, self._keep_document)


def _numbers(run: bytes) -> list[float]:
    """The values of BINFLOAT opcodes one behind the other."""
    import numpy as np

    values: list[float] = np.frombuffer(run, np.dtype([("code", "u1"), ("value", ">f8")]))["value"].tolist()
    return values


def _text(argument: bytes) -> str:
    return argument.decode("utf-8", "surrogatepass")


def _int_line(machine: Machine, argument: bytes) -> None:
    if argument in (b"00", b"01"):
        machine.push(argument == b"01")
    else:
        machine.push(int(argument.rstrip(b"L")))


def _string_line(machine: Machine, argument: bytes) -> None:
    if len(argument) < 2 or argument[0] != argument[-1] or argument[:1] not in (b"'", b'"'):
        raise ValueError("a string has no quotes")
    raw = argument[1:-1].decode("unicode_escape").encode("latin-1")
    machine.push(raw.decode("utf-8"))


def _global(machine: Machine, argument: bytes) -> None:
    module, _, name = argument.partition(b"\n")
    machine.name(_text(module), _text(name))


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _call_with_keywords(machine: Machine, _: Any) -> None:
    keywords, arguments = machine.pop(), machine.pop()
    if keywords:
        raise UnsafePickleError(machine._refusal("a call with keywords"))
    machine.call(arguments, new=True)


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return action


def _set_of(machine: Machine, _: Any) -> None:
    machine.push(frozenset(map(check_key, machine.pop_mark())))


def _add_items(machine: Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.top(set).update(map(check_key, items))


def _dict(machine: Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.push({})
    machine.set_items(items)


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _append(machine: Machine, _: Any) -> None:
    item = machine.pop()
    machine.extend([item])


def _drop(machine: Machine, _: Any) -> None:
    if machine._marks and len(machine._stack) == machine._marks[-1]:
        machine._marks.pop()
    else:
        machine.pop()


def _integer(size: int, *, signed: bool) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, argument: bytes) -> None:
        if len(argument) < size:
            raise ValueError("a number is cut short")
        machine.push(int.from_bytes(argument, "little", signed=signed))

    return action


Action = Callable[[Machine, Any], Any]
_ACTIONS: dict[int, Action] = {
    ord("("): lambda m, _: m._marks.append(len(m._stack)),
    ord("0"): _drop,
    ord("1"): lambda m, _: m.pop_mark(),
    ord("2"): lambda m, _: m.push(m._stack[-1]),
    ord("N"): lambda m, _: m.push(None),
    0x88: lambda m, _: m.push(True),
    0x89: lambda m, _: m.push(False),
    ord("I"): _int_line,
    ord("L"): _int_line,
    ord("K"): _integer(1, signed=False),
    ord("M"): _integer(2, signed=False),
    ord("J"): _integer(4, signed=True),
    0x8A: _integer(0, signed=True),
    0x8B: _integer(0, signed=True),
    ord("F"): lambda m, a: m.push(float(a)),
    ord("G"): lambda m, a: m.push(struct.unpack(">d", a)[0]),
    ord("S"): _string_line,
    ord("T"): lambda m, a: m.push(a.decode("utf-8")),
    ord("U"): lambda m, a: m.push(a.decode("utf-8")),
    ord("V"): lambda m, a: m.push(a.decode("raw_unicode_escape")),
    **dict.fromkeys(b"X\x8c\x8d", lambda m, a: m.push(_text(a))),
    **dict.fromkeys(b"BC\x8e\x96", lambda m, a: m.push(bytes(a))),  # metadata knows no bytearray
    ord("]"): lambda m, _: m.new_list(),
    ord("l"): lambda m, _: m.push(m.pop_mark()),
    ord("a"): _append,
    ord("e"): lambda m, _: m.extend(m.pop_mark()),
    ord(")"): lambda m, _: m.push(()),
    ord("t"): lambda m, _: m.push(tuple(m.pop_mark())),
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("}"): lambda m, _: m.push({}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): lambda m, _: m.set_items(m.pop_mark()),
    0x8F: lambda m, _: m.push(set()),
    0x90: _add_items,
    0x91: _set_of,
    ord("g"): lambda m, a: m.get(int(a)),
    ord("h"): lambda m, a: m.get(a[0]),
    ord("j"): lambda m, a: m.get(int.from_bytes(a, "little")),
    ord("p"): lambda m, a: m.put(int(a)),
    ord("q"): lambda m, a: m.put(a[0]),
    ord("r"): lambda m, a: m.put(int.from_bytes(a, "little")),
    0x94: lambda m, _: m.put(m._puts),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): lambda m, _: m.call(m.pop(), new=False),
    0x81: lambda m, _: m.call(m.pop(), new=True),
    0x92: _call_with_keywords,
    ord("b"): lambda m, _: m.build(m.pop()),
    0x80: lambda m, a: None,
    0x95: lambda m, a: None,
}

# -- how much a record may unfold to ----------------------------------------------------------

_MOST = 64 * 1024 * 1024
_DEEPEST = 100
_FEW = 10_000
_SCALARS = frozenset({int, float, bool, type(None)})


def check_size(metadata: Any, where: str) -> None:
    """Refuse metadata that refers to itself, is nested beyond 100 levels, or unfolds to more than 64 MiB.

    A pickle may share one value many times over; written as JSON, each place gets a copy of its own.

    Raises:
        CorruptDataError: naming ``where`` it was found.
    """
    if type(metadata) is dict and _is_small(metadata):
        return
    left, waiting = _MOST, [(metadata, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str | bytes):
            left -= len(value)
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
            left -= 16 * len(value)
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += [(item, depth + 1) for item in value]
            left -= 8 * len(value)
        if left < 0 or depth > _DEEPEST:
            raise CorruptDataError(
                f"{where} holds a record whose metadata unfolds without bound; load the file with its own "
                "application and save the records as JSON"
            )


def _is_small(metadata: dict[Any, Any]) -> bool:
    """Whether it holds scalars, and lists of scalars, only: nearly all metadata does."""
    size = 0
    for value in metadata.values():
        kind = type(value)
        if kind is list:
            if len(value) > _FEW:
                return False
            for item in value:
                if type(item) is str:
                    size += len(item)
                elif type(item) not in _SCALARS:
                    return False
        elif kind is str:
            size += len(value)
        elif kind not in _SCALARS:
            return False
    return size < _MOST and len(metadata) < _FEW and all(type(key) is str for key in metadata)


__all__ = ["Keep", "Machine", "check_size", "read_pickle"]
