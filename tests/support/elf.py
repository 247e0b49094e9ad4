"""What a 64-bit little-endian shared library says of itself, read without binutils."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MACHINES = {62: "x86_64", 183: "aarch64"}

_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB, _SYMTAB, _SONAME, _VERNEED, _VERNEEDNUM = 1, 5, 6, 14, 0x6FFFFFFE, 0x6FFFFFFF
_GNU_HASH = 0x6FFFFEF5


@dataclass(frozen=True)
class Symbol:
    name: str
    address: int
    size: int
    defined: bool


class Library:
    """The dynamic section, its symbols and the versions that they want."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        assert self._data[:6] == b"\x7fELF\x02\x01", path
        self.machine = MACHINES[self._unpack("<H", 18)[0]]
        offset, entry, count = *self._unpack("<Q", 32), *self._unpack("<HH", 54)
        headers = [self._unpack("<IIQQQQQQ", offset + i * entry) for i in range(count)]
        self._loads = [(h[3], h[2], h[5]) for h in headers if h[0] == _LOAD]
        place, size = next((h[2], h[5]) for h in headers if h[0] == _DYNAMIC)
        pairs = [self._pair(place + i) for i in range(0, size, 16)]
        self._needed = [value for tag, value in pairs if tag == _NEEDED]
        self._tags = dict(reversed(pairs))

    @property
    def needed(self) -> list[str]:
        return [self._string(offset) for offset in self._needed]

    @property
    def soname(self) -> str:
        return self._string(self._tags[_SONAME])

    @cached_property
    def symbols(self) -> list[Symbol]:
        """All dynamic ones. Their number follows from where the string table begins."""
        start = self._offset(self._tags[_SYMTAB])
        found = []
        for index in range(self._symbol_count()):
            name, _, _, section, address, size = self._unpack("<IBBHQQ", start + index * 24)
            found.append(Symbol(self._string(name), address, size, defined=section != 0))
        return found

    @property
    def exported(self) -> list[str]:
        return sorted(symbol.name for symbol in self.symbols if symbol.defined)

    @property
    def wanted_versions(self) -> set[str]:
        """Like ``GLIBC_2.17``."""
        place, found = self._offset(self._tags[_VERNEED]), set()
        for _ in range(self._tags[_VERNEEDNUM]):
            _, count, _, first, following = self._unpack("<HHIII", place)
            entry = place + first
            for _ in range(count):
                _, _, _, name, skip = self._unpack("<IHHII", entry)
                found.add(self._string(name))
                entry += skip
            place += following
        return found

    def code(self, name: str) -> bytes:
        """The instructions of an exported function."""
        symbol = next(one for one in self.symbols if one.name == name)
        place = self._offset(symbol.address)
        return self._data[place : place + symbol.size]

    def _symbol_count(self) -> int:
        """The GNU hash table's last chain ends with the last symbol."""
        table = self._offset(self._tags[_GNU_HASH])
        buckets, first, words, _ = self._unpack("<IIII", table)
        start = table + 16 + 8 * words
        last = max(self._unpack(f"<{buckets}I", start))
        while last >= first:
            chain = start + 4 * buckets + 4 * (last - first)
            if self._unpack("<I", chain)[0] & 1:
                break
            last += 1
        return last + 1

    def _offset(self, address: int) -> int:
        return next(
            offset + address - start
            for start, offset, size in self._loads
            if start <= address < start + size
        )

    def _pair(self, offset: int) -> tuple[int, int]:
        tag, value = self._unpack("<QQ", offset)
        return tag, value

    def _string(self, offset: int) -> str:
        start = self._offset(self._tags[_STRTAB]) + offset
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self._data, offset)
