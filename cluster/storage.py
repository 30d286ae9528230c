"""Stores: the one place that opens URIs. A store is a folder, on disk (a path, `file://`) or in a bucket (`s3://`).

Names inside a store are relative, with `/` between their pieces. Writes are atomic: a reader sees all of an object or none.
"""

import contextlib
import errno
import io
import os
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from typing_extensions import override

from cluster.errors import (
    AlreadyExistsError,
    BadInputError,
    MisplacedError,
    ObjectDeniedError,
    ObjectMissingError,
    PermanentStoreError,
    RetryableStoreError,
)

_TEMPORARY = ".tmp-"  # prefix of files that are not finished; never listed
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ENOTCONN,
}  # fmt: skip
_OF_A_FILE = {errno.EIO, errno.ESTALE}  # of one file too: a damaged one, or one that was replaced
_AGAIN_S = (0.1, 1.0)  # between tries to read a file
_UNLISTED = "lost+found"  # of a volume's root
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.ELOOP}


@dataclass(frozen=True)
class Entry:
    """One object of a listing: name in the store, size in bytes, when it was written (s since 1970, the store's clock).

    `upload` is the id of an unfinished upload to S3, and empty for an object.
    """

    name: str
    size: int
    modified: float = field(default=0.0, compare=False)
    upload: str = ""


class Store(ABC):
    """A folder of objects. Picklable; clients are made in each process when first used."""

    @abstractmethod
    def uri(self, name: str = "") -> str:
        """Absolute URI of an object, or of the folder itself."""

    @abstractmethod
    def child(self, name: str) -> "Store":
        """The store rooted at a folder below."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size in bytes; None when there is no such object."""

    @abstractmethod
    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or `length` of them from `start`.

        Raises:
            ObjectMissingError: no such object.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Put an object, whole or not at all, over any that is there."""

    @abstractmethod
    def write_if_absent(self, name: str, data: bytes) -> None:
        """Put an object unless there is one; of many writers exactly one succeeds.

        Raises:
            AlreadyExistsError: there is one.
        """

    @abstractmethod
    def write_file(self, name: str, path: Path) -> None:
        """Put a file of any size, whole or not at all."""

    @abstractmethod
    def download(self, name: str, path: Path) -> None:
        """Bring an object to a local path, whole or not at all; its folder is made."""

    @abstractmethod
    def list(self, prefix: str = "", *, links: bool = True) -> Iterator[Entry]:
        """All objects whose names start with `prefix`, by name; on disk those in linked folders too, unless `links` is False.
        What a console puts into a bucket to show an empty folder, a key that ends in a slash, is none.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when there is none."""

    @abstractmethod
    def unfinished(self) -> Iterator[Entry]:
        """What killed writers left that is no object: temporary files on disk, parts of uploads to S3."""

    def discard(self, entry: Entry) -> None:
        """Remove an object, or what `unfinished` found; nothing happens when it is gone."""
        self.delete(entry.name)

    def local_path(self, name: str) -> Path | None:
        """Where the object lies as a file of this machine; None where it does not."""
        return None

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.size(name) is not None

    def open(self, name: str) -> BinaryIO:
        """A seekable reader that fetches only the ranges it is asked for.

        Raises:
            ObjectMissingError: no such object.
        """
        size = self.size(name)
        if size is None:
            raise ObjectMissingError(f"{self.uri(name)}: no such object")
        return io.BufferedReader(_Ranges(self, name, size), buffer_size=1 << 18)


class _Ranges(io.RawIOBase):
    """Ranged reads of one object as a raw file."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        super().__init__()
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable buffer
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._store.read(self._name, start=self._at, length=wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class LocalStore(Store):
    """A folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @override
    def uri(self, name: str = "") -> str:
        return str(self._path(name)) if name else str(self.root)

    @override
    def local_path(self, name: str) -> Path:
        return self._path(name)

    @override
    def child(self, name: str) -> "LocalStore":
        return LocalStore(self._path(name))

    @override
    def size(self, name: str) -> int | None:
        path = self._path(name)
        with _explained(path):
            try:
                return path.stat().st_size if path.is_file() else None
            except (FileNotFoundError, NotADirectoryError):
                return None

    @override
    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        for wait in _AGAIN_S:
            try:
                return _bytes_of(path, start, length)
            except RetryableStoreError:
                time.sleep(wait)
        try:
            return _bytes_of(path, start, length)
        except RetryableStoreError as error:
            cause = error.__context__
            if isinstance(cause, OSError) and cause.errno in _OF_A_FILE and _answers(path.parent):
                raise ObjectDeniedError(str(error)) from None
            raise

    @override
    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with _explained(path), _finished_file(path, data) as temporary:
            temporary.replace(path)

    @override
    def write_if_absent(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with _explained(path), _finished_file(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExistsError(f"{path}: there is one already") from None

    @override
    def write_file(self, name: str, path: Path) -> None:
        target = self._path(name)
        with _explained(target), _finished_file(target, path) as temporary:
            temporary.replace(target)

    @override
    def download(self, name: str, path: Path) -> None:
        source = self._path(name)
        with _explained(source), _finished_file(path, source) as temporary:
            temporary.replace(path)

    @override
    def list(self, prefix: str = "", *, links: bool = True) -> Iterator[Entry]:
        return self._walk(prefix, temporary=False, links=links)

    @override
    def unfinished(self) -> Iterator[Entry]:
        return self._walk("", temporary=True, links=False)

    def _walk(self, prefix: str, *, temporary: bool, links: bool) -> Iterator[Entry]:
        """A folder's files by name, then its folders' by name. A link that leads nowhere is listed, with the size of nothing;
        what lies in the root is listed under its own name, and not under that of a link to it too.
        """
        root = self.root.resolve()
        waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(self.root / prefix.rpartition("/")[0], frozenset())]
        while waiting:
            folder, above = waiting.pop()
            with _explained(folder):
                try:
                    here = folder.stat()
                    files, folders = _sorted_folder(folder, links=links)
                    folders = [
                        path
                        for path in folders
                        if path != self.root / _UNLISTED
                        and not (path.is_symlink() and path.resolve().is_relative_to(root))
                    ]
                except (FileNotFoundError, NotADirectoryError):  # nobody made it, or it is gone meanwhile
                    continue
            seen = above | {(here.st_dev, here.st_ino)}
            if len(seen) == len(above):  # a link to a folder that it lies in
                continue
            for path in files:
                name = path.relative_to(self.root).as_posix()
                if name.startswith(prefix) and path.name.startswith(_TEMPORARY) == temporary:
                    with contextlib.suppress(ObjectMissingError), _explained(path):
                        found = path.lstat() if _leads_nowhere(path) else path.stat()
                        yield Entry(name, 0 if stat.S_ISLNK(found.st_mode) else found.st_size, found.st_mtime)
            waiting += [(path, seen) for path in reversed(folders)]

    @override
    def delete(self, name: str) -> None:
        path = self._path(name)
        with _explained(path):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        _check_name(name)
        if name.startswith("/"):
            raise BadInputError(f"{name!r} is not a name inside a folder")
        return self.root / name


def _sorted_folder(folder: Path, *, links: bool) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, each by name; linked folders are folders if `links` says so, else they are left out."""
    files, folders = [], []
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            path = Path(entry.path)
            if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
                files.append(path)
            elif links or not entry.is_symlink():
                folders.append(path)
    return files, folders


def _bytes_of(path: Path, start: int, length: int | None) -> bytes:
    with _explained(path), path.open("rb") as file:
        left = max(0, os.fstat(file.fileno()).st_size - start)
        if start:
            file.seek(start)
        return file.read() if length is None else file.read(min(length, left))  # so much is asked of memory at once


def _answers(folder: Path) -> bool:
    """Whether a folder can be listed: a file in it that cannot be read is damaged then, not its disk away."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return False


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _check_name(name: str) -> None:
    if ".." in name.split("/") or "\0" in name:
        raise BadInputError(f"{name!r} is not a name inside a folder")


@contextlib.contextmanager
def _finished_file(path: Path, source: bytes | Path) -> Iterator[Path]:
    """A temporary file beside `path` with all of `source` in it, on disk; gone afterwards, whatever happens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(path.parent) from None
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with source.open("rb") as reader:
                    while block := reader.read(8 << 20):
                        file.write(block)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the file system as ours, one line each."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissingError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise MisplacedError(f"{path}: a folder, and a file is wanted there; choose another") from None
    except NotADirectoryError:
        raise MisplacedError(f"{path}: what lies above it is a file and no folder; choose another") from None
    except PermissionError:
        raise ObjectDeniedError(f"{path}: permission denied; see to its rights, or choose another") from None
    except OSError as error:
        advice = {errno.EROFS: "choose a folder that can be written", errno.ENOSPC: "free some space"}
        line = f"{path}: {error.strerror}; {advice.get(error.errno or 0, 'check the disk')}"
        if error.errno in _PASSING:
            raise RetryableStoreError(line) from None
        raise (ObjectDeniedError if error.errno in _OF_THE_NAME else PermanentStoreError)(line) from None


def open_store(uri: str | Path) -> Store:
    """The store rooted at a folder; slashes at the ends of a bucket's prefix are none of its name.

    Raises:
        BadInputError: no store has this scheme.
    """
    text = str(uri)
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    if not text or "\0" in text:
        raise BadInputError(f"{text!r} names no folder")
    if scheme == "s3":
        from cluster.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store.at(f"s3://{bucket}/{prefix.strip('/')}")
    if scheme == "file":
        return LocalStore(Path(unquote("/" + rest.partition("/")[2])))
    if scheme:
        raise BadInputError(f"{text}: {scheme}:// is not supported; use a path, file:// or s3://")
    return LocalStore(Path(os.path.abspath(Path(text).expanduser())))  # noqa: PTH100 - resolve() would follow links


def split_uri(uri: str) -> tuple[Store, str]:
    """A URI of one object as the store of its folder and its name there; in a bucket every slash is one of the key's."""
    head, slash, name = (uri if uri.startswith("s3://") else uri.rstrip("/")).rpartition("/")
    if not name:
        raise BadInputError(f"{uri!r} names no file")
    if uri.startswith("file://"):
        name = unquote(name)
    return _cached_store(head + slash or "."), name


@lru_cache(maxsize=256)
def _cached_store(uri: str) -> Store:
    if not uri.startswith("s3://"):
        return open_store(uri)
    from cluster.s3 import S3Store

    return S3Store.at(uri)


def read_uri(uri: str, *, most: int | None = None) -> bytes:
    """All bytes of the object at an absolute URI or a path, or its first `most`.

    Raises:
        ObjectMissingError: no such object.
        ObjectDeniedError: it is there, and not given.
    """
    store, name = split_uri(uri)
    return store.read(name, length=most)


def resolve_uri(uri: str, base: str) -> str:
    """`uri` as it stands in a table at `base`: absolute ones stay, relative ones are below the table's folder."""
    if "://" in uri or uri.startswith("/"):
        return uri
    return f"{base.rpartition('/')[0]}/{uri}"


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem and the path of `uri` in it, for libraries that write there themselves (Ray Train).

    Raises:
        BadInputError: a bucket's folder with several slashes in a row, which pyarrow does not take.
    """
    import pyarrow.fs

    store = open_store(uri)
    if isinstance(store, LocalStore):
        store.root.mkdir(parents=True, exist_ok=True)
        return pyarrow.fs.LocalFileSystem(), str(store.root)
    from cluster.s3 import arrow_s3

    path = store.uri("").removeprefix("s3://")
    if "//" in path:
        raise BadInputError(
            f"{uri}: checkpoints cannot be written below an empty folder name; take out the double slash"
        )
    return arrow_s3(), path
