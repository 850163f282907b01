"""Where studies are kept: any of Optuna's storages, with errors that name it in one line."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from recbole_llm.errors import RecboleLLMError, SettingsError, one_line

JOURNAL = "journal:"
HEARTBEAT_SECONDS = 10
# After so long without a sign of life a process is taken for dead.
_STALE_SECONDS = 60
_LOCK_SECONDS = 60


def open_storage(url: str | None) -> BaseStorage:
    """Optuna's storage behind an URL, ``journal:FILE``, or in memory.

    Raises:
        SettingsError: it cannot be used.
    """
    if url is None:
        return InMemoryStorage()
    if url.startswith(JOURNAL):
        file = Path(url.removeprefix(JOURNAL))
        if not file.parent.is_dir():
            raise SettingsError(f"`storage`: there is no folder {file.parent}")
        if file.is_file() and not os.access(file, os.W_OK):
            raise SettingsError(f"`storage`: cannot write {file}")
        return JournalStorage(JournalFileBackend(str(file), _OwnedLock(f"{file}.lock")))
    if "://" not in url:
        raise SettingsError(
            f"`storage` must look like sqlite:///studies.db, journal:FILE or another of Optuna's "
            f"URLs, got {url!r}"
        )
    is_sqlite = url.startswith("sqlite")
    _refuse_foreign(url)
    storage = RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}} if is_sqlite else None,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=_STALE_SECONDS,
    )
    if is_sqlite:
        _write_ahead(storage)
    return storage


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """A storage's many errors as one line that names it."""
    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = getattr(cause, "orig", None) or cause or error
        raise SettingsError(f"`storage`: cannot use {url}: {one_line(reason)}") from error


@contextmanager
def opening(url: str | None) -> Iterator[None]:
    """What a storage raises that is not there, none, or of another version."""
    try:
        yield
    except RecboleLLMError:
        raise
    except ImportError as error:
        raise SettingsError(f"`storage`: {url} needs `{error.name}`; install it") from error
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise SettingsError(f"`storage`: cannot use {url}: {one_line(error)}") from error


def _refuse_foreign(url: str) -> None:
    """A database of something else does not get Optuna's tables."""
    engine = sqlalchemy.create_engine(url)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if tables and "studies" not in tables:
        raise SettingsError(
            f"`storage`: {url} is a database of something else (it has {', '.join(tables[:3])})"
        )


def _write_ahead(storage: RDBStorage) -> None:
    """A commit waits for no disk: a fast trial has a dozen, each ten times as long as its work.

    A killed process loses nothing by it; a power failure may lose the last trials.
    """

    def set_up(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", set_up)
    storage.engine.dispose()


class _OwnedLock(BaseJournalFileLock):
    """A lock that says whose it is: that of a killed process is taken over at once.

    Optuna's own is waited for half a minute, since it does not say who made it; this one is too,
    where its owner runs on another machine.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def acquire(self) -> bool:
        seen, since = "", time.monotonic()
        while True:
            try:
                os.symlink(worker(), self.path)
                return True
            except FileExistsError:
                pass
            try:
                owner = os.readlink(self.path)
            except FileNotFoundError:
                continue
            if owner != seen:
                seen, since = owner, time.monotonic()
            if is_gone(owner) or time.monotonic() - since > _STALE_SECONDS:
                self.release()
            else:
                time.sleep(0.001)

    def release(self) -> None:
        Path(self.path).unlink(missing_ok=True)


def worker() -> str:
    """This process: its machine, its number, and when it began."""
    started = psutil.Process().create_time()
    return f"{socket.gethostname()}:{os.getpid()}:{started:.0f}"


def is_gone(worker: str) -> bool:
    """Whether a process of this machine has ended; of others nothing is known."""
    host, pid, started = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != started
    except psutil.NoSuchProcess:
        return True
