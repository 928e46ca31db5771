"""The file of a verdict cache: SQLite, opened, checked and explained.

Its journal is SQLite's rollback journal, not a write-ahead log, whose files a reader would have to create: so a cache
in a folder that cannot be written can still be read. Two processes may write at once; one waits for the other.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from triune.errors import InputError

APPLICATION_ID = 0x54524A56  # "TRJV": another program's SQLite file is not ours
SCHEMA = 1
WAIT_SECONDS = 60.0

_TABLES = (
    "CREATE TABLE judges (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, prompt TEXT NOT NULL,"
    " UNIQUE (name, version, prompt))",
    "CREATE TABLE verdicts (key BLOB PRIMARY KEY, judge INTEGER NOT NULL REFERENCES judges (id),"
    " value REAL CHECK (value BETWEEN 0 AND 1), reason TEXT NOT NULL, payload TEXT, cost REAL NOT NULL,"
    " at INTEGER NOT NULL)",
)

_DAMAGED = "is damaged or no SQLite file; wanted a verdict cache. Move it away: what it held is asked again"
_HALF_WRITTEN = (
    "was being written when its process was killed, and cannot be written here, so that this cannot be taken back; "
    "copy it, and the file -journal beside it, to where it can"
)
_CAUSES = {
    sqlite3.SQLITE_READONLY_ROLLBACK: _HALF_WRITTEN,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_ERROR: "has other tables than a verdict cache; name another file",
    sqlite3.SQLITE_BUSY: f"is held by another process for more than {WAIT_SECONDS:.0f} s; end it or wait",
    sqlite3.SQLITE_LOCKED: f"is held by another process for more than {WAIT_SECONDS:.0f} s; end it or wait",
    sqlite3.SQLITE_READONLY: "cannot be written; copy it where it can, or use only what it holds (only_cached)",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; wanted a file that can be read, in a folder that can be written",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; make room and run again, what was written is kept",
    sqlite3.SQLITE_IOERR: "cannot be read or written by the system; check the disk",
}


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """The cache for reading only; None where the file is empty and holds nothing yet.

    Raises InputError for no file, a damaged or foreign one, and one of a newer Triune.
    """
    if not path.is_file():
        raise InputError(f"verdict cache {path}: no such file; wanted one that an earlier run has written.")
    with _explained(path):
        _roll_back(path)
        with closing(_connect(path, "ro")) as connection:
            yield connection if _is_set_up(connection, path) else None


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """The cache for one transaction, kept where the block ends well; the file and its folder are made where missing.

    Raises InputError as `reading`, and for a file that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"verdict cache {path}: its folder cannot be made ({error.strerror}); name another."
        ) from error
    with _explained(path), closing(_connect(path, "rwc")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if not _is_set_up(connection, path):
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # Written each time: on a file that may only be read, beginning succeeds, and only a first change fails.
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        yield connection
        # Without it, closing rolls back: after an error nothing of the block is kept.
        connection.execute("COMMIT")


def _roll_back(path: Path) -> None:
    """Take back what a process wrote that was killed in the middle of it, which a connection for reading may not.

    A process that still writes is waited for. In a folder that cannot be written reading itself says what is wrong.
    """
    if path.with_name(f"{path.name}-journal").exists():
        with suppress(sqlite3.OperationalError), closing(_connect(path, "rw")) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # Autocommit: transactions begin and end where this module says so.
    address = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=WAIT_SECONDS, isolation_level=None)


def _is_set_up(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for an empty database. Raises InputError for one that is not ours."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    schema = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application, schema, tables) == (0, 0, 0):
        return False
    if application != APPLICATION_ID:
        raise InputError(f"{path}: an SQLite file of another program, not a verdict cache; name another file.")
    if schema != SCHEMA:
        raise InputError(
            f"verdict cache {path}: has schema {schema}; this Triune reads {SCHEMA}. Use the Triune that wrote it, or "
            "name another file."
        )
    # A view in a table's place may compute for ever, a trigger change what is written: we make neither.
    kinds = connection.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchone()[0]
    if kinds:
        raise InputError(f"verdict cache {path}: has {kinds} views or triggers, which no cache has; name another.")
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where SQLite's message quotes damaged bytes
        # The low byte is the cause, what is above it a finer one.
        code = getattr(error, "sqlite_errorcode", 0)
        cause = _CAUSES.get(code) or _CAUSES.get(code & 0xFF)
        # Without a known cause: a text that is no UTF-8, a size that no row can have, a format of another time.
        raise InputError(f"verdict cache {path}: {cause or _DAMAGED} ({error}).") from error
