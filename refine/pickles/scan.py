"""Walk over the opcodes of a pickle, which bounds what it can ask for before anything is built from it.

An allow-list of globals keeps a pickle from running code, not from exhausting the machine: nine bytes can ask for a
memo of gigabytes, a chain of one-byte opcodes for a tuple so deep that hashing it overflows the C stack. So the opcodes
are walked first, as a stack machine over *sizes* instead of values: one Python integer or short string per value, no
payload read. Only opcodes that Python's own picklers write at protocols 2 to 5 are known here; everything else is
refused.

Source: the opcode table of `pickletools` (PEP 307, 3154, 574).
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from refine.pickles.errors import DamagedFileError, PickleError

MAX_DEPTH = 150  # a StyleGAN2 snapshot needs 30; the writer recurses, so this also bounds its stack
MAX_SHORT_STRING = 256  # bytes; longer strings cannot name a global
MAX_OPCODES = 4_000_000
MAX_STORAGE_OPCODES = 200  # of each pickle in the archive of one storage, which needs 40
MAX_CONTAINERS = 500_000  # an object of up to 300 bytes for one byte of file
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # with which the archive of every storage begins

# A network pickle; the object within a file of torch.save, whose tensors' data lies elsewhere; a part of the archive of
# one storage. The last two refer to storages by persistent ids and are of protocol 2.
ScanKind = Literal["network", "torch", "storage"]


class Archive(NamedTuple):
    """A storage's archive: `begin` of its opcode, and `start` and `end` of its bytes."""

    begin: int
    start: int
    end: int


@dataclass(frozen=True)
class PickleScan:
    """Result of a walk over the opcodes.

    Attributes:
        protocol: Protocol of the pickle.
        globals: Names in use, each once.
        end: Position after STOP.
        archives: Archives of storages, in their order.
        frames: Positions of the opcodes FRAME.
        discards: Whether values are made and then discarded, as dill does.
    """

    protocol: int
    globals: tuple[tuple[str, str], ...]
    end: int
    archives: tuple[Archive, ...] = ()
    frames: tuple[int, ...] = ()
    discards: bool = False


# The value of the symbolic machine: a short string stands for itself (it may name a global, it may be a key),
# any other value is its nesting depth; 0 means an atom that is safe as a dictionary key.
_Value = str | int
_KEY, _ATOM = 0, 1
_NAME = re.compile(r"[A-Za-z0-9_.]+")

_OPCODE_NAMES = {info.code: info.name for info in pickletools.opcodes}

_FIXED_ATOMS = {  # opcode -> (bytes of argument, value)
    pickle.NONE: (0, _KEY),
    pickle.NEWTRUE: (0, _KEY),
    pickle.NEWFALSE: (0, _KEY),
    pickle.BININT: (4, _KEY),
    pickle.BININT1: (1, _KEY),
    pickle.BININT2: (2, _KEY),
    pickle.BINFLOAT: (8, _ATOM),  # never a key: numbers can be chosen to collide in a dictionary
    pickle.EMPTY_DICT: (0, 1),
    pickle.EMPTY_LIST: (0, 1),
    pickle.EMPTY_SET: (0, 1),
    pickle.EMPTY_TUPLE: (0, 1),
}
_COUNTED_ATOMS = {  # opcode -> (bytes of the length field, value of a long payload)
    pickle.SHORT_BINUNICODE: (1, _KEY),
    pickle.BINUNICODE: (4, _KEY),
    pickle.BINUNICODE8: (8, _KEY),
    pickle.SHORT_BINBYTES: (1, _ATOM),
    pickle.BINBYTES: (4, _ATOM),
    pickle.BINBYTES8: (8, _ATOM),
    pickle.BYTEARRAY8: (8, _ATOM),
    pickle.LONG1: (1, _ATOM),
}
_BYTES = {pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8}
_TEXT = {pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8}
_CONTAINERS = {
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX),
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_CALLS = {pickle.REDUCE: 2, pickle.NEWOBJ: 2, pickle.NEWOBJ_EX: 3, pickle.BUILD: 2}


def scan_pickle(
    file: BinaryIO, size: int, *, kind: ScanKind = "network", max_opcodes: int = MAX_STORAGE_OPCODES
) -> PickleScan:
    """Walks the pickle that starts at the file's position, without building anything.

    Args:
        file: Seekable; left at the end of the pickle.
        size: Position where the data ends.
        kind: Kind of pickle.
        max_opcodes: Most opcodes, for the kind "storage" only; the others' bound grows with the size.

    Raises:
        DamagedFileError: A length does not fit, bytes are no opcode, or a value is missing.
        PickleError: An unexpected opcode, a memo index, a number of values or a nesting that no honest pickle of this
            size has.
    """
    return _Scanner(file, size, kind, max_opcodes).run()


def names_dill(names: Iterable[tuple[str, str]]) -> bool:
    """True if a pickle with these globals was written by dill."""
    return any(module == "dill._dill" for module, _ in names)


class _Scanner:
    def __init__(self, file: BinaryIO, size: int, kind: ScanKind, max_opcodes: int) -> None:
        self.file = file
        self.start = file.tell()
        self.size = size
        self.kind = kind
        self.stack: list[_Value] = []
        self.marked_stacks: list[list[_Value]] = []
        self.memo: list[_Value] = []
        self.globals: dict[tuple[str, str], None] = {}
        self.protocol = 0
        self.frame_end = 0
        self.archives: list[Archive] = []
        self.frames: list[int] = []
        self.first_discard: tuple[bytes, int] | None = None
        # Small snapshots have an opcode every 17 to 140 bytes, a container every 90 to 730; large ones fewer.
        length = size - self.start
        sparse = 4 if kind == "torch" else 1  # times as many where tensors' data lies elsewhere
        self.max_opcodes = max_opcodes if kind == "storage" else min(MAX_OPCODES, 100_000 + sparse * length // 8)
        self.max_containers = min(MAX_CONTAINERS, 8_000 + sparse * length // 32)

    def run(self) -> PickleScan:
        steps = {bytes([code]): step for code, step in self._steps().items()}
        read, num_opcodes, num_containers = self.file.read, 0, 0
        while True:
            begin = self.file.tell()
            opcode = read(1)
            if not opcode:
                raise DamagedFileError("is cut off: it ends before its last opcode; download or copy it again")
            if (opcode == pickle.PROTO) != (num_opcodes == 0):
                raise PickleError("is not a pickle of protocol 2 or later")
            num_opcodes += 1
            num_containers += opcode in _CONTAINERS
            if num_opcodes > self.max_opcodes or num_containers > self.max_containers:
                raise PickleError(f"holds more objects than a network pickle of {self.size} bytes needs; refused")
            if opcode in _FIXED_ATOMS:
                num_bytes, value = _FIXED_ATOMS[opcode]
                if num_bytes:
                    self._read(num_bytes)
                self._push(value)
            elif opcode in steps:
                steps[opcode]()
            elif opcode != pickle.STOP:
                raise self._unusable(opcode, begin)
            # Python's unpicklers differ in what they read where an opcode crosses the end of a frame.
            crosses = opcode != pickle.FRAME and begin < self.frame_end < self.file.tell()
            if crosses or (opcode == pickle.STOP and begin + 1 < self.frame_end):
                raise PickleError("has an opcode that crosses the end of a frame: forged; refused")
            if opcode == pickle.STOP:
                self._pop()
                if self.stack or self.marked_stacks:
                    raise DamagedFileError("is damaged: values are left over at its end; download or copy it again")
                if self.first_discard is not None and not names_dill(self.globals):
                    raise self._unusable(*self.first_discard)
                found = (tuple(self.archives), tuple(self.frames), self.first_discard is not None)
                return PickleScan(self.protocol, tuple(self.globals), self.file.tell(), *found)

    def _steps(self) -> dict[int, Callable[[], None]]:
        """Opcode -> effect on the symbolic stack, for all opcodes but constants."""
        steps: dict[bytes, Callable[[], None]] = {
            pickle.PROTO: self._proto,
            pickle.FRAME: self._frame,
            pickle.MARK: self._mark,
            pickle.MEMOIZE: lambda: self._put(len(self.memo)),
            pickle.BINPUT: lambda: self._put(self._number(1)),
            pickle.LONG_BINPUT: lambda: self._put(self._number(4)),
            pickle.BINGET: lambda: self._get(self._number(1)),
            pickle.LONG_BINGET: lambda: self._get(self._number(4)),
            pickle.POP: lambda: self._discard(pickle.POP),
            pickle.POP_MARK: lambda: self._discard(pickle.POP_MARK),
            pickle.TUPLE: lambda: self._push(1 + _depth(self._pop_mark())),
            pickle.APPEND: lambda: self._grow([self._pop()]),
            pickle.APPENDS: lambda: self._grow(self._pop_mark()),
            pickle.ADDITEMS: lambda: self._grow(self._keys(self._pop_mark())),
            pickle.SETITEM: lambda: self._set_items([self._pop(), self._pop()][::-1]),
            pickle.SETITEMS: lambda: self._set_items(self._pop_mark()),
            pickle.GLOBAL: lambda: self._global(self._line(), self._line()),
            pickle.STACK_GLOBAL: self._stack_global,
        }
        for opcode, (num_bytes, value) in _COUNTED_ATOMS.items():
            steps[opcode] = lambda o=opcode, n=num_bytes, v=value: self._counted(o, n, v)  # type: ignore[misc]
        for opcode, num_values in (_TUPLES | _CALLS).items():
            steps[opcode] = lambda n=num_values: self._push(  # type: ignore[misc]
                1 + _depth([self._pop() for _ in range(n)])
            )
        if self.kind != "network":
            steps[pickle.BINPERSID] = lambda: self._push(1 + _depth([self._pop()]))
        return {opcode[0]: step for opcode, step in steps.items()}

    @staticmethod
    def _unusable(opcode: bytes, position: int) -> PickleError:
        """An opcode that Python has but no network pickle needs may be an attack; a byte that is none is damage."""
        if opcode.decode("latin-1") not in _OPCODE_NAMES:
            return DamagedFileError(
                f"is damaged: its byte {position:,}, {opcode!r}, is not an opcode; download or copy it again"
            )
        return PickleError(
            f"uses the opcode {_OPCODE_NAMES[opcode.decode('latin-1')]} at byte {position:,}, which no network pickle "
            "needs: it is damaged or forged; download it again from a source that you trust"
        )

    # -- reading --------------------------------------------------------------------------------------

    def _read(self, num_bytes: int) -> bytes:
        data = self.file.read(num_bytes)
        if len(data) < num_bytes:
            raise DamagedFileError("is cut off in the middle of an opcode; download or copy it again")
        return data

    def _number(self, num_bytes: int) -> int:
        return int.from_bytes(self._read(num_bytes), "little")

    def _length(self, num_bytes: int) -> int:
        length, left = self._number(num_bytes), self.size - self.file.tell()
        if length > left:
            raise DamagedFileError(
                f"is cut off (or forged): byte {self.file.tell()} declares {length} bytes, where {left} are left; "
                "download or copy it again"
            )
        return length

    def _line(self) -> str:
        line = self.file.readline(MAX_SHORT_STRING)
        if not line.endswith(b"\n"):
            raise PickleError("names a global of more than 256 bytes or is cut off; refused")
        return line[:-1].decode("utf-8", "backslashreplace")

    # -- the symbolic stack ---------------------------------------------------------------------------

    def _push(self, value: _Value) -> None:
        if isinstance(value, int) and value > MAX_DEPTH:
            raise PickleError(f"nests values more than {MAX_DEPTH} deep, which no network pickle does; refused")
        self.stack.append(value)

    def _pop(self) -> _Value:
        if not self.stack:
            raise DamagedFileError("is damaged: an opcode finds no value to work on; download or copy it again")
        return self.stack.pop()

    def _discard(self, opcode: bytes) -> None:
        """Discards a value, or all above the last mark; only dill's picklers do so."""
        if self.first_discard is None:
            self.first_discard = opcode, self.file.tell() - 1
        if opcode == pickle.POP:
            self._pop()  # a mark itself, which POP would take too, is no value
        else:
            self._pop_mark()

    def _mark(self) -> None:
        self.marked_stacks.append(self.stack)
        self.stack = []
        if len(self.marked_stacks) > 2 * MAX_DEPTH:
            raise PickleError(f"nests values more than {MAX_DEPTH} deep, which no network pickle does; refused")

    def _pop_mark(self) -> list[_Value]:
        if not self.marked_stacks:
            raise DamagedFileError("is damaged: an opcode finds no mark to go back to; download or copy it again")
        items, self.stack = self.stack, self.marked_stacks.pop()
        return items

    def _grow(self, items: list[_Value]) -> None:
        self._push(max(_depth([self._pop()]), 1 + _depth(items)))

    def _set_items(self, items: list[_Value]) -> None:
        self._keys(items[::2])
        self._grow(items)

    def _keys(self, keys: list[_Value]) -> list[_Value]:
        if any(isinstance(key, int) and key > _KEY for key in keys):
            raise PickleError("has a dictionary key that is neither a string nor a small number; refused")
        return keys

    def _put(self, index: int) -> None:
        if index > len(self.memo):  # Python's picklers number their memo without gaps
            raise PickleError(f"writes memo entry {index} after {len(self.memo)} others: forged; refused")
        value = self._pop()
        self.stack.append(value)
        self.memo[index : index + 1] = [value]

    def _get(self, index: int) -> None:
        if index >= len(self.memo):
            raise DamagedFileError(f"is damaged: it reads memo entry {index}, which it never wrote; download it again")
        self._push(self.memo[index])

    # -- opcodes with an effect of their own ----------------------------------------------------------

    def _proto(self) -> None:
        self.protocol = self._number(1)
        lowest = 3 if self.kind == "network" else 2
        if not lowest <= self.protocol <= pickle.HIGHEST_PROTOCOL:
            raise PickleError(
                f"is a pickle of protocol {self.protocol}, and Refine reads {lowest} to {pickle.HIGHEST_PROTOCOL}: "
                "load it in the repository that it comes from and save it again"
            )

    def _frame(self) -> None:
        begin = self.file.tell() - 1
        if begin < self.frame_end:
            raise PickleError("has a frame within a frame: forged; refused")
        length = self._length(8)
        self.frames.append(begin)
        # The rule about ends of frames looks at the opcodes within: this one lies before its own frame.
        self.frame_end = self.file.tell() + length

    def _counted(self, opcode: bytes, num_bytes: int, value: int) -> None:
        if opcode == pickle.BYTEARRAY8 and self.protocol < 5:
            raise PickleError("uses an opcode of protocol 5 and says that it is older: forged; refused")
        length = self._length(num_bytes)
        if opcode in _TEXT and length <= MAX_SHORT_STRING:
            self._push(self._read(length).decode("utf-8", "backslashreplace"))
            return
        start = self.file.tell()
        head = self.file.read(len(LEGACY_START)) if self.kind == "network" and opcode in _BYTES else b""
        if head == LEGACY_START and length > len(LEGACY_START):
            self.archives.append(Archive(start - num_bytes - 1, start, start + length))
        self.file.seek(start + length)
        self._push(value)

    def _global(self, module: str, name: str) -> None:
        if not (_NAME.fullmatch(module) and _NAME.fullmatch(name)):
            raise PickleError(f"names a global {_shown(module)}.{_shown(name)}, which is not a name; refused")
        self.globals[module, name] = None
        self._push(1)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("names a global by something else than two short strings; refused")
        self._global(module, name)


def _shown(name: str) -> str:
    return name[:80].encode("unicode_escape").decode("ascii")


def _depth(values: list[_Value]) -> int:
    return max((value for value in values if isinstance(value, int)), default=0)
