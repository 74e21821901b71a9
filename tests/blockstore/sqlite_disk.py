"""A VFS under SQLite: each read, write, truncation and sync of ``meta.db`` and its log is one of the recorded disk.

SQLite runs as it is; only its files are those of a ``Host`` (the disk of ``powercut``), which notes what reaches it in
the trace that data and journals are in, and fails where it was told to. So what a cut inside a commit or inside
SQLite's own checkpointing leaves is built and judged like any other cut. The VFS is made with ctypes in the library
that ``_sqlite3`` is linked to; nothing is compiled or preloaded.

What it promises SQLite is what the unix VFS promises: a write may land in part (powersafe overwrite: never outside of
itself), in any order with others up to the next sync; errors come as the codes that it would give. Locks and the log's
index in shared memory live and die with a ``Process``: whoever opens the files after it died finds none of them, and
what it tries to write later (Python closes connections when it forgets them) is thrown away.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import itertools
import sqlite3
import weakref
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, Protocol

from blockstore.api import Buffer

_OK, _BUSY, _FULL, _CANTOPEN, _NOTFOUND = 0, 5, 13, 14, 12
_IOERR_READ, _IOERR_SHORT_READ, _IOERR_WRITE = 10 | 1 << 8, 10 | 2 << 8, 10 | 3 << 8
_IOERR_FSYNC, _IOERR_TRUNCATE = 10 | 4 << 8, 10 | 6 << 8
_OPEN_CREATE, _OPEN_DELETEONCLOSE = 0x4, 0x8
_SHARED, _RESERVED, _EXCLUSIVE = 1, 2, 4  # locks of the database file; 3 is on the way to 4
_SHM_UNLOCK, _SHM_SHARED = 1, 4
_SECTOR = 4096  # what the unix VFS says
_POWERSAFE_OVERWRITE = 0x1000
_NAME = b"recorded"
_MAX_NAME = 512
_NOW = 212_000_000_000_000  # milliseconds since noon of -4713-11-24: a day like any other


class RawFile(Protocol):
    """What SQLite's files need more than the engine's do."""

    def size(self) -> int: ...

    def read(self, offset: int, into: memoryview) -> int: ...

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None: ...

    def truncate(self, length: int) -> None: ...

    def sync(self) -> None: ...


class Host(Protocol):
    """Where the files are."""

    def exists(self, name: str) -> bool: ...

    def open(self, name: str, *, create: bool = False) -> RawFile: ...

    def remove(self, name: str, *, synced: bool = False) -> None: ...


class Connection(sqlite3.Connection):
    """One that can be forgotten."""


class Process:
    """One process that has a database of ``host`` open, through any number of connections."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.alive = True
        self.number = next(_numbers)
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.locks: dict[str, dict[int, int]] = {}  # file -> handle -> level
        self.index: dict[str, list[ctypes.Array[ctypes.c_char]]] = {}  # the log's index: regions of shared memory
        self.index_locks: dict[str, dict[tuple[int, int], bool]] = {}  # file -> (handle, slot) -> whether exclusive
        _processes[self.number] = self

    def die(self) -> None:
        """Its locks and memory are gone, and nothing it did without the host knowing reaches that any more."""
        self.alive = False
        for connection in list(self.connections):
            connection.close()
        _processes.pop(self.number, None)

    def connect(self, name: str, factory: type[Connection]) -> Connection:
        """As ``HostDirectory.database`` does. Raises sqlite3.Error."""
        _register()
        connection = sqlite3.connect(
            f"file:/{self.number}/{name}?vfs={_NAME.decode()}",
            uri=True,
            factory=factory,
            isolation_level=None,
            check_same_thread=False,
        )
        self.connections.add(connection)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection


class _Handle:
    """One open file of SQLite."""

    def __init__(self, process: Process, name: str, file: RawFile) -> None:
        self.process = process
        self.name = name
        self.file = file
        self.number = next(_numbers)


_numbers = itertools.count(1)
_processes: weakref.WeakValueDictionary[int, Process] = weakref.WeakValueDictionary()
_handles: dict[int, _Handle] = {}  # each holds its process, and so the host


@atexit.register
def _end() -> None:
    """While there is a Python that the VFS can call."""
    for process in list(_processes.values()):
        process.die()


class _Scratch:
    """A temporary file of SQLite's: nothing that survives."""

    def __init__(self) -> None:
        self._content = bytearray()

    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, into: memoryview) -> int:
        part = self._content[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        self._content.extend(bytes(max(0, offset - len(self._content))))
        self._content[offset : offset + len(data)] = data

    def truncate(self, length: int) -> None:
        del self._content[length:]

    def sync(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------- files


class _File(Structure):
    """sqlite3_file, and our handle's number behind it."""


def _handle(file: int) -> _Handle:
    return _handles[_File.from_address(file).number]


def _close(file: int) -> int:
    handle = _handles.pop(_File.from_address(file).number)
    handle.process.locks.get(handle.name, {}).pop(handle.number, None)
    return _OK


def _read(file: int, into: int, length: int, offset: int) -> int:
    buffer = (ctypes.c_char * length).from_address(into)
    try:
        count = _handle(file).file.read(offset, memoryview(buffer).cast("B"))
    except OSError:
        return _IOERR_READ
    if count < length:
        ctypes.memset(into + count, 0, length - count)
        return _IOERR_SHORT_READ
    return _OK


def _changing(error: int, change: Callable[..., None]) -> Callable[..., int]:
    """``change`` as an io method: not by the dead, and ``error`` when the host refuses."""

    def method(file: int, *arguments: int) -> int:
        handle = _handle(file)
        if not handle.process.alive:
            return error
        try:
            change(handle, *arguments)
        except OSError as refusal:
            return _FULL if refusal.errno == errno.ENOSPC and error == _IOERR_WRITE else error
        return _OK

    return method


def _write(handle: _Handle, source: int, length: int, offset: int) -> None:
    handle.file.write(offset, (ctypes.string_at(source, length),))


def _truncate(handle: _Handle, length: int) -> None:
    handle.file.truncate(length)


def _sync(handle: _Handle, flags: int) -> None:
    handle.file.sync()


def _file_size(file: int, size: Any) -> int:
    size[0] = _handle(file).file.size()
    return _OK


def _lock(file: int, level: int) -> int:
    handle = _handle(file)
    held = handle.process.locks.setdefault(handle.name, {})
    others = max([0, *(each for number, each in held.items() if number != handle.number)])
    allowed = {_SHARED: _RESERVED, _RESERVED: _SHARED, _EXCLUSIVE: 0}
    if others > allowed.get(level, 0):
        return _BUSY
    held[handle.number] = max(level, held.get(handle.number, 0))
    return _OK


def _unlock(file: int, level: int) -> int:
    handle = _handle(file)
    handle.process.locks.setdefault(handle.name, {})[handle.number] = level
    return _OK


def _check_reserved(file: int, result: Any) -> int:
    handle = _handle(file)
    result[0] = int(max([0, *handle.process.locks.get(handle.name, {}).values()]) >= _RESERVED)
    return _OK


# ------------------------------------------------------------------------------------------------- the log's index


def _shm_map(file: int, region: int, size: int, extend: int, result: Any) -> int:
    handle = _handle(file)
    regions = handle.process.index.setdefault(handle.name, [])
    while extend and len(regions) <= region:
        regions.append(ctypes.create_string_buffer(size))
    result[0] = ctypes.addressof(regions[region]) if region < len(regions) else None
    return _OK


def _shm_lock(file: int, offset: int, count: int, flags: int) -> int:
    handle = _handle(file)
    held = handle.process.index_locks.setdefault(handle.name, {})
    slots = range(offset, offset + count)
    if flags & _SHM_UNLOCK:
        for slot in slots:
            held.pop((handle.number, slot), None)
        return _OK
    exclusive = not flags & _SHM_SHARED
    for (number, slot), other in held.items():
        if slot in slots and number != handle.number and (exclusive or other):
            return _BUSY
    held.update({(handle.number, slot): exclusive for slot in slots})
    return _OK


def _shm_unmap(file: int, delete: int) -> int:
    handle = _handle(file)
    held = handle.process.index_locks.get(handle.name, {})
    for key in [key for key in held if key[0] == handle.number]:
        del held[key]
    if delete:
        handle.process.index.pop(handle.name, None)
    return _OK


_IO_METHODS: list[tuple[str, Any, Callable[..., Any]]] = [
    ("xClose", CFUNCTYPE(c_int, c_void_p), _close),
    ("xRead", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64), _read),
    ("xWrite", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64), _changing(_IOERR_WRITE, _write)),
    ("xTruncate", CFUNCTYPE(c_int, c_void_p, c_int64), _changing(_IOERR_TRUNCATE, _truncate)),
    ("xSync", CFUNCTYPE(c_int, c_void_p, c_int), _changing(_IOERR_FSYNC, _sync)),
    ("xFileSize", CFUNCTYPE(c_int, c_void_p, POINTER(c_int64)), _file_size),
    ("xLock", CFUNCTYPE(c_int, c_void_p, c_int), _lock),
    ("xUnlock", CFUNCTYPE(c_int, c_void_p, c_int), _unlock),
    ("xCheckReservedLock", CFUNCTYPE(c_int, c_void_p, POINTER(c_int)), _check_reserved),
    ("xFileControl", CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), lambda file, operation, argument: _NOTFOUND),
    ("xSectorSize", CFUNCTYPE(c_int, c_void_p), lambda file: _SECTOR),
    ("xDeviceCharacteristics", CFUNCTYPE(c_int, c_void_p), lambda file: _POWERSAFE_OVERWRITE),
    ("xShmMap", CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, POINTER(c_void_p)), _shm_map),
    ("xShmLock", CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int), _shm_lock),
    ("xShmBarrier", CFUNCTYPE(None, c_void_p), lambda file: None),
    ("xShmUnmap", CFUNCTYPE(c_int, c_void_p, c_int), _shm_unmap),
]
_IO_VERSION = 2  # with shared memory, without memory mapping


class _IoMethods(Structure):
    _fields_ = [("iVersion", c_int), *((name, kind) for name, kind, _ in _IO_METHODS)]


_File._fields_ = [("pMethods", POINTER(_IoMethods)), ("number", c_int64)]
_io_methods = _IoMethods(_IO_VERSION, *(kind(method) for _, kind, method in _IO_METHODS))


# ------------------------------------------------------------------------------------------------- the VFS


def _place(name: bytes) -> tuple[Process | None, str]:
    """ "/<process>/<name>" -> the process, None if it is dead, and the name."""
    _, number, file = name.decode().split("/")
    return _processes.get(int(number)), file


def _open(vfs: int, name: bytes | None, file: int, flags: int, out_flags: Any) -> int:
    opened = _File.from_address(file)
    opened.pMethods = None  # no xClose after a failure
    if name is None:
        handle = _Handle(_NOBODY, "", _Scratch())
    else:
        process, path = _place(name)
        if process is None or not (flags & _OPEN_CREATE or process.host.exists(path)):
            return _CANTOPEN
        try:
            handle = _Handle(process, path, process.host.open(path, create=bool(flags & _OPEN_CREATE)))
        except OSError as error:
            return _FULL if error.errno == errno.ENOSPC else _CANTOPEN
    _handles[handle.number] = handle
    opened.number, opened.pMethods = handle.number, ctypes.pointer(_io_methods)
    if out_flags:
        out_flags[0] = flags
    return _OK


def _delete(vfs: int, name: bytes, synced: int) -> int:
    process, path = _place(name)
    if process is not None:
        process.host.remove(path, synced=bool(synced))
    return _OK


def _access(vfs: int, name: bytes, flags: int, result: Any) -> int:
    process, path = _place(name)
    result[0] = int(process is not None and process.host.exists(path))
    return _OK


def _full_name(vfs: int, name: bytes, length: int, out: int) -> int:
    ctypes.memmove(out, name + b"\0", len(name) + 1)
    return _OK


def _randomness(vfs: int, length: int, out: int) -> int:
    ctypes.memset(out, 7, length)
    return length


def _time(vfs: int, result: Any) -> int:
    result[0] = _NOW
    return _OK


_VFS_METHODS: list[tuple[str, Any, Callable[..., Any] | None]] = [
    ("xOpen", CFUNCTYPE(c_int, c_void_p, c_char_p, c_void_p, c_int, POINTER(c_int)), _open),
    ("xDelete", CFUNCTYPE(c_int, c_void_p, c_char_p, c_int), _delete),
    ("xAccess", CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, POINTER(c_int)), _access),
    ("xFullPathname", CFUNCTYPE(c_int, c_void_p, c_char_p, c_int, c_void_p), _full_name),
    ("xDlOpen", c_void_p, None),
    ("xDlError", c_void_p, None),
    ("xDlSym", c_void_p, None),
    ("xDlClose", c_void_p, None),
    ("xRandomness", CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), _randomness),
    ("xSleep", CFUNCTYPE(c_int, c_void_p, c_int), lambda vfs, microseconds: microseconds),
    ("xCurrentTime", CFUNCTYPE(c_int, c_void_p, POINTER(c_double)), None),
    ("xGetLastError", CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), lambda vfs, length, out: 0),
    ("xCurrentTimeInt64", CFUNCTYPE(c_int, c_void_p, POINTER(c_int64)), _time),
]
_VFS_VERSION = 2


class _Vfs(Structure):
    _fields_ = [
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        *((name, kind) for name, kind, _ in _VFS_METHODS),
    ]


class _Nowhere:
    """The host of temporary files, which have no name there."""

    def exists(self, name: str) -> bool:
        return False

    def open(self, name: str, *, create: bool = False) -> RawFile:
        raise FileNotFoundError(name)

    def remove(self, name: str, *, synced: bool = False) -> None:
        raise FileNotFoundError(name)


_NOBODY = Process(_Nowhere())
_vfs = _Vfs(
    _VFS_VERSION,
    ctypes.sizeof(_File),
    _MAX_NAME,
    None,
    _NAME,
    None,
    *(kind(method) if method else kind() for _, kind, method in _VFS_METHODS),
)


def _register() -> None:
    """Once: make the VFS known to the library that Python's sqlite3 uses."""
    if not _library:
        library = ctypes.CDLL(_loaded_library())
        assert library.sqlite3_vfs_register(ctypes.byref(_vfs), 0) == _OK
        _library.append(library)


_library: list[ctypes.CDLL] = []


def _loaded_library() -> str:
    """The path of the libsqlite3 in this process. A sqlite3 linked into Python itself is not reached this way."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libsqlite3" in line:
            return line.split(maxsplit=5)[5]
    raise RuntimeError("Python's sqlite3 is not linked to a libsqlite3 that can be given a VFS")
