"""Shared memory with a name, and lists in it.

The interface and the layout are those of multiprocessing's module (of CPython 3.13): either
attaches to what the other has made. The package's own memory (`sharedctypes`, `heap`) has no names.
"""

from __future__ import annotations

import mmap
import os
import struct
import types

from . import _core, resource_tracker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, ClassVar

    _Item = int | float | bool | str | bytes | None

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True  # as multiprocessing's tests ask
_O_CREX = os.O_CREAT | os.O_EXCL
_SHM_NAME_PREFIX = "/psm_"
#: random bytes in a name that we choose
_NAME_BYTES = 4


def _make_filename() -> str:
    """A name that is probably free."""
    return _SHM_NAME_PREFIX + os.urandom(_NAME_BYTES).hex()


class SharedMemory:
    """A named segment of shared memory: a new one (`create`) or one that exists.

    `name`: without a leading slash; may be None for a new one. `size`: in bytes, of a new one.
    `track`: whether the resource tracker unlinks it when all processes of the program have ended
    without having done so; pass False where another program owns it.

    The segment is process-shared and lives until somebody has called `unlink` and all have called
    `close`; this object is process-local, and a copy of it in a forked child is as good.
    Raises `FileExistsError`, `FileNotFoundError`, `OSError(ENOSPC)` if the size cannot be had (in
    multiprocessing: SIGBUS at first use), `ValueError` for a size or name that makes no sense.
    """

    _name: str | None = None
    _fd = -1
    _mmap: mmap.mmap | None = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True

    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        self._open(name)
        try:
            if create:
                _core.shm_allocate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            # It keeps a descriptor of its own.
            self._mmap = mmap.mmap(self._fd, self._size)
            if track:
                resource_tracker.register(self._require_name(), "shared_memory")
        except BaseException:
            if create:
                _core.shm_unlink(self._require_name())
            raise
        finally:
            os.close(self._fd)
            self._fd = -1
        self._buf = memoryview(self._mmap)

    def _open(self, name: str | None) -> None:
        if name is not None:
            self._name = "/" + name if self._prepend_leading_slash else name
            self._fd = _core.shm_open(self._name, self._flags, self._mode)
            return
        while True:
            self._name = _make_filename()
            try:
                self._fd = _core.shm_open(self._name, self._flags, self._mode)
            except FileExistsError:
                continue
            return

    def _require_name(self) -> str:
        assert self._name is not None
        return self._name

    def __del__(self) -> None:
        try:  # noqa: SIM105  (contextlib is dear to import)
            self.close()
        except (OSError, BufferError):
            pass  # something still uses the memory: it stays mapped until that has gone

    def __reduce__(self) -> tuple[Callable[..., SharedMemory], tuple[str, bool, int]]:
        attach: Callable[..., SharedMemory] = type(self)
        if not self._track:  # another program's: the receiver must not have it unlinked either
            from functools import partial

            attach = partial(attach, track=False)
        return attach, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self) -> memoryview:
        """The memory; None after `close`."""
        return self._buf  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The name that others attach by."""
        name = self._require_name()
        return name.removeprefix("/") if self._prepend_leading_slash else name

    @property
    def size(self) -> int:
        """Bytes in the segment."""
        return self._size

    def close(self) -> None:
        """Use the memory no more, here. Raises `BufferError` while something else does."""
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._mmap is not None:
            self._mmap.close()
            self._mmap = None

    def unlink(self) -> None:
        """Remove the name; once for all processes. The memory goes when all have closed it."""
        if self._name:
            _core.shm_unlink(self._name)
            if self._track:
                resource_tracker.unregister(self._name, "shared_memory")


# ---- lists ----

_WORD = 8
#: how an item comes back from the bytes, by the code that is stored beside it
_AS_IT_IS, _AS_STR, _AS_BYTES, _AS_NONE = range(4)


class ShareableList:
    """A list of fixed length in shared memory: ints of 64 bits, floats, bools, str, bytes, None.

    Made of `sequence`, in a new segment called `name` if that is given; without a sequence, one
    that exists is attached to. A str or bytes item can be replaced by one that fits in the room of
    the first, a multiple of 8 bytes; trailing NULs are lost.

    ```
     count   offsets (count + 1)   items   struct formats, 8 bytes each   codes, 1 byte each
    ```
    """

    _types_mapping: ClassVar[dict[type, str]] = {
        int: "q",
        float: "d",
        bool: "xxxxxxx?",
        str: "%ds",
        bytes: "%ds",
        type(None): "xxxxxx?x",
    }
    _alignment = _WORD
    _back_transforms_mapping: ClassVar[dict[int, Callable[[Any], Any]]] = {
        _AS_IT_IS: lambda value: value,
        _AS_STR: lambda value: value.rstrip(b"\x00").decode(),
        _AS_BYTES: lambda value: value.rstrip(b"\x00"),
        _AS_NONE: lambda value: None,
    }

    def __init__(self, sequence: Iterable[_Item] | None = None, *, name: str | None = None) -> None:
        if name is not None and sequence is None:
            self.shm = SharedMemory(name)
            self._list_len = len(self)
            self._allocated_offsets: list[int] = list(self._unpack(f"{self._list_len + 1}q", _WORD))
            return

        values = tuple(sequence or ())
        items = [_encode(value) for value in values]
        formats = [self._new_format(value) for value in values]
        self._list_len = len(items)
        self._allocated_offsets = [0]
        for item_format in formats:
            size = struct.calcsize(item_format)
            self._allocated_offsets.append(self._allocated_offsets[-1] + size)
        size = self._offset_back_transform_codes + self._list_len
        self.shm = SharedMemory(name, create=True, size=size)
        try:
            self._pack(f"{self._list_len + 2}q", 0, self._list_len, *self._allocated_offsets)
            for position, value in enumerate(values):
                self._store(position, formats[position], items[position], value)
        except BaseException:  # an int of more than 64 bits
            self.shm.close()
            self.shm.unlink()
            raise

    def _new_format(self, value: Any) -> str:
        item_format = self._types_mapping[type(value)]
        if isinstance(value, (str, bytes)):
            # By the length of the text; by that of its bytes where it is more.
            rooms = len(value) // self._alignment + 1, -(-len(_encode(value)) // self._alignment)
            return item_format % (self._alignment * max(rooms))
        return item_format

    # ---- the bytes ----

    def _pack(self, item_format: str, offset: int, *values: Any) -> None:
        struct.pack_into(item_format, self.shm.buf, offset, *values)

    def _unpack(self, item_format: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(item_format, self.shm.buf, offset)

    def _store(self, position: int, item_format: str, encoded: Any, original: _Item) -> None:
        self._set_packing_format_and_transform(position, item_format, original)
        self._pack(
            item_format, self._offset_data_start + self._allocated_offsets[position], encoded
        )

    def _check(self, position: int) -> int:
        if position < 0:
            position += self._list_len
        if not 0 <= position < self._list_len:
            raise IndexError("Requested position out of range.")
        return position

    @staticmethod
    def _extract_recreation_code(value: _Item) -> int:
        if isinstance(value, str):
            return _AS_STR
        if isinstance(value, bytes):
            return _AS_BYTES
        return _AS_NONE if value is None else _AS_IT_IS

    def _get_packing_format(self, position: int) -> str:
        offset = self._offset_packing_formats + self._check(position) * _WORD
        packed: bytes = self._unpack("8s", offset)[0]
        return packed.rstrip(b"\x00").decode()

    def _get_back_transform(self, position: int) -> Callable[[Any], Any]:
        offset = self._offset_back_transform_codes + self._check(position)
        return self._back_transforms_mapping[self._unpack("b", offset)[0]]

    def _set_packing_format_and_transform(
        self, position: int, fmt_as_str: str, value: _Item
    ) -> None:
        position = self._check(position)
        self._pack("8s", self._offset_packing_formats + position * _WORD, fmt_as_str.encode())
        code = self._extract_recreation_code(value)
        self._pack("b", self._offset_back_transform_codes + position, code)

    @property
    def _offset_data_start(self) -> int:
        return (self._list_len + 2) * _WORD

    @property
    def _offset_packing_formats(self) -> int:
        return self._offset_data_start + self._allocated_offsets[-1]

    @property
    def _offset_back_transform_codes(self) -> int:
        return self._offset_packing_formats + self._list_len * _WORD

    # ---- the list ----

    def __getitem__(self, position: int) -> Any:
        try:
            position = self._check(position)
        except IndexError:
            raise IndexError("index out of range") from None
        offset = self._offset_data_start + self._allocated_offsets[position]
        (value,) = self._unpack(self._get_packing_format(position), offset)
        return self._get_back_transform(position)(value)

    def __setitem__(self, position: int, value: _Item) -> None:
        try:
            position = self._check(position)
        except IndexError:
            raise IndexError("assignment index out of range") from None
        encoded = _encode(value)
        if isinstance(encoded, bytes):
            start, end = self._allocated_offsets[position : position + 2]
            if len(encoded) > end - start:
                raise ValueError("bytes/str item exceeds available storage")
            item_format = self._types_mapping[str] % (end - start)
        else:
            item_format = self._new_format(value)
        self._store(position, item_format, encoded, value)

    def __reduce__(self) -> Any:
        from functools import partial

        return partial(type(self), name=self.shm.name), ()

    def __len__(self) -> int:
        count: int = self._unpack("q", 0)[0]
        return count

    def __iter__(self) -> Iterator[Any]:
        return (self[position] for position in range(self._list_len))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self) -> str:
        """The formats of all items, as the struct module has them."""
        return "".join(self._get_packing_format(i) for i in range(self._list_len))

    def count(self, value: _Item) -> int:
        """How many items are equal to `value`."""
        return list(self).count(value)

    def index(self, value: _Item) -> int:
        """Where the first item is that is equal to `value`; `ValueError` if there is none."""
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f"{value!r} not in this container")

    __class_getitem__: Any = classmethod(types.GenericAlias)


def _encode(item: _Item) -> Any:
    return item.encode() if isinstance(item, str) else item
