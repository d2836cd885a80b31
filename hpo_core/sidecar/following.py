"""Following a file that somebody else writes, who is not trusted to leave it what it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 64 << 10
LINE_BYTES = 1 << 20
"""A line that is longer is given in pieces, before its end is there."""


class Tail:
    """Reads a file from its start as it grows.

    One that is written anew is read anew; one that is not there is waited for.

    Links are not followed: the writer could lead the reader to what only the reader may see.

    Args:
        path: The file.
        root: A folder above it, which the writer cannot replace.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self._root = root
        self._parts = path.relative_to(root).parts
        self._file = -1
        self._read = 0
        self._partial = b""

    def lines(self) -> Iterator[bytes]:
        """Yield what has come, in pieces that end with a line."""
        while True:
            piece = self._next()
            whole, ends, rest = (self._partial + piece).rpartition(b"\n")
            if len(rest) > LINE_BYTES:
                whole, ends, rest = whole + ends, rest, b""
            self._partial = rest
            if whole or ends:
                yield whole + ends
            if not piece:
                return

    def rest(self) -> bytes:
        """Return a last line without an end, with one; empty when there is none."""
        rest, self._partial = self._partial, b""
        return rest + b"\n" if rest else b""

    def _next(self) -> bytes:
        """The next piece; empty at the present end."""
        if self._file < 0:
            self._open()
        if self._file < 0:
            return b""
        piece = os.read(self._file, PIECE_BYTES)
        if not piece and self._is_replaced():
            os.close(self._file)
            self._file, self._read, self._partial = -1, 0, b""
            return self._next()
        self._read += len(piece)
        return piece

    def _open(self) -> None:
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in self._parts:
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
        except OSError:
            os.close(folder)
            return
        if stat.S_ISREG(os.fstat(folder).st_mode):
            self._file = folder
        else:
            os.close(folder)

    def _is_replaced(self) -> bool:
        """Tell whether another file is there now, or this one has become shorter."""
        opened = os.fstat(self._file)
        if opened.st_size < self._read:
            return True
        try:
            there = self._root.joinpath(*self._parts).stat(follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(there.st_mode) and not os.path.samestat(opened, there)
