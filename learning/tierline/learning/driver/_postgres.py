"""A journal's tables in a PostgreSQL database: a schema of its own for each journal, so that many share a database."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tierline.core.errors import ConfigError, DataError, LinkUnavailable, MissingDependency, TierlineError
from tierline.core.link.fields import Bytes

if TYPE_CHECKING:
    import psycopg

_PATIENCE: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Seconds, and milliseconds: a server that is gone without a word is noticed within half a minute."""


class PostgresStore:
    """Contents of any length up to 1 GB stand in the tables. Raises ConfigError where the URL, the user, the password
    or the database is wrong, LinkUnavailable where no server answers, MissingDependency without psycopg; all later
    errors are a DataError."""

    types: ClassVar[Mapping[str, str]] = {"blob": "BYTEA", "number": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}

    def __init__(self, url: str, name: str, tables: str) -> None:
        """`name` tells this journal from others of the database; `tables` makes what is not there."""
        self._db, self._error = connect(url), _psycopg().Error
        schema = schema_of(name)
        self.place = f"{shown(url)} schema {schema}"
        self.remedy = f"remove it by DROP SCHEMA {schema} CASCADE to start again"
        try:
            with self._db.transaction():
                for query in (f"CREATE SCHEMA IF NOT EXISTS {schema}", f"SET search_path = {schema}", tables):
                    self._db.execute(query)
        except self._error as error:
            self._db.close()
            raise ConfigError(
                f"{shown(url)}: {_line(error)}; let the user create schemas in this database, or name another"
            ) from error

    def close(self) -> None:
        self._db.close()

    def execute(self, query: str, row: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._told():
            cursor = self._db.execute(query.replace("?", "%s"), row, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        with self._told(), self._db.transaction():
            yield _Transaction()

    def content(self, body: bytes | None, slot: str | None) -> bytes:
        return body or b""

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise DataError(f"{self.place}: {_line(error)}") from error


class _Transaction:
    def keep(self, parts: Sequence[Bytes]) -> tuple[Bytes | None, str | None]:
        return b"".join(parts), None

    def drop(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Rows take what they hold with them."""


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Raises as PostgresStore does."""
    driver = _psycopg()
    try:
        made: psycopg.Connection[tuple[Any, ...]] = driver.connect(url, autocommit=True, **_PATIENCE)
    except driver.ProgrammingError as error:
        like = "postgresql://user:password@host:5432/database"
        # Not what the driver says: it may repeat a part of the password.
        raise ConfigError(f"{shown(url)}: no URL of a database; write it like {like}, with %XX for signs") from error
    except driver.OperationalError as error:
        raise _why_not(url, _without_password(url, _line(error))) from error
    return made


def remove(url: str, name: str) -> None:
    """Raises as PostgresStore does."""
    with connect(url) as db:
        try:
            db.execute(f"DROP SCHEMA IF EXISTS {schema_of(name)} CASCADE")
        except _psycopg().Error as error:
            raise DataError(f"{shown(url)} schema {schema_of(name)}: {_line(error)}") from error


def schema_of(name: str) -> str:
    return f"tierline_{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def shown(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(?<=[?&])password=[^&]*", "password=***", re.sub(r"//([^/:@]*):.*@", r"//\1:***@", url))


def _without_password(url: str, line: str) -> str:
    """A password with signs of its own may have been taken for a part of the host."""
    found = re.search(r"//[^/:@]*:(.*)@", url)
    for part in re.split(r"[@:/?]", found[1]) if found else ():
        line = line.replace(part, "***") if len(part) > 1 else line
    return line


def _why_not(url: str, line: str) -> TierlineError:
    """The server says it in words alone, before there is a connection."""
    if "password" in line or "authentication" in line or re.search(r'role "[^"]*" does not exist', line):
        return ConfigError(f"{shown(url)}: {line}; write user and password into the URL, or set PGPASSWORD")
    if re.search(r'database "[^"]*" does not exist', line):
        return ConfigError(f"{shown(url)}: {line}; make it with createdb, or name another")
    return LinkUnavailable(f"{shown(url)}: {line}; is the server running, and may this machine reach it?")


def _line(error: Exception) -> str:
    """What psycopg says, without the hints that follow in further lines."""
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return first.rpartition("FATAL:  ")[2]


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingDependency(
            "a journal in PostgreSQL needs the Python package 'psycopg': pip install 'tierline[postgres]'"
        ) from error
    return psycopg
