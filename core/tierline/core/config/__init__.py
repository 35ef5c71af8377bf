"""Configuration files: one TOML file into one frozen struct, with overrides, and errors that name the key.

Order of precedence: `--set a.b=c` over the environment (`TIERLINE_A_B`) over the file over the struct's defaults.
A relative path in a file is meant from the folder of that file; one given by flag or environment from where the user
stands. Unknown keys are errors everywhere, also in the environment under a table the file knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from tierline.core.catalog import nearest
from tierline.core.config._keys import bracketed, check_keys, explain, fields, leaves, origin_of, put, show, struct
from tierline.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)

_FILE_SCHEMES = ("dataset", "folder", "video", "jsonl")


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A checked configuration and where each value came from."""

    path: Path
    value: T
    origin: dict[str, str]
    """By dotted key: `default`, `file`, `environment NAME` or `--set`."""

    def base(self, key: str) -> Path:
        """The folder from which a relative path at `key` is meant."""
        return self.path.absolute().parent if self.origin.get(key, "file") in ("file", "default") else Path.cwd()

    def locate(self, key: str, path: str) -> str:
        """`path`, the value of `key`, made absolute; empty stays empty."""
        return absolute(path, self.base(key))

    def locate_uri(self, key: str, uri: str) -> str:
        """A source or sink URI whose file, if it names one, is made absolute."""
        return absolute_uri(uri, self.base(key))


def absolute(path: str, base: Path) -> str:
    """`path` seen from the folder `base`; empty stays empty."""
    return os.path.normpath(base / Path(path).expanduser()) if path else ""


def absolute_uri(uri: str, base: Path) -> str:
    """A source or sink URI whose file, if it names one, is made absolute, seen from the folder `base`."""
    address, mark, query = uri.rpartition("?")
    address, query = (address, mark + query) if mark else (uri, "")
    scheme, colon, rest = address.partition(":")
    if scheme.endswith(".py"):
        return absolute(scheme, base) + colon + rest + query
    file, *function = rest.rsplit(":", 1) if scheme == "python" else [rest]
    if file and (scheme in _FILE_SCHEMES or (scheme == "python" and file.endswith(".py"))):
        return ":".join([scheme, absolute(file, base), *function]) + query
    return uri


def load(
    path: Path,
    type_: type[T],
    *,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    prefix: str = "TIERLINE",
    schema: int = 1,
) -> Loaded[T]:
    """Read `path` as `type_`. `overrides` are `a.b=c`; `env` defaults to the process's. Raises ConfigError."""
    raw = read_document(path)
    name = path.name
    if raw.get("schema") != schema:
        found = f"schema = {show(raw['schema'])}, this version reads" if "schema" in raw else "schema: missing; write"
        raise ConfigError(f"{name}: {found} schema = {schema}")
    check_keys(raw, type_, name)
    given: dict[str, str] = {}
    for variable, key, text in _from_environment(os.environ if env is None else env, type_, prefix, name):
        put(raw, type_, key, text, variable)
        given[key] = f"environment {variable}"
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: write --set table.key=value")
        put(raw, type_, key.strip(), text.strip(), "--set")
        given[bracketed(key.strip())] = "--set"
    try:
        value = msgspec.convert(raw, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, raw, type_, name, given)) from error
    return Loaded(path, value, {key: origin_of(key, raw, given) for key, _ in flatten(value)})


def convert(raw: Mapping[str, Any], type_: type[T], name: str) -> T:
    """A plain document as `type_`, checked like a file; `name` is what errors call it. Raises ConfigError."""
    document = dict(raw)
    check_keys(document, type_, name)
    try:
        return msgspec.convert(document, type_)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, document, type_, name, {})) from error


def flatten(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a configuration, in order: `node.id`, `source[0].uri`."""
    if isinstance(value, msgspec.Struct):
        for key in value.__struct_fields__:
            yield from flatten(getattr(value, key), f"{at}.{key}" if at else key)
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flatten(item, f"{at}.{key}")
    elif isinstance(value, list | tuple) and any(isinstance(item, msgspec.Struct) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{at}[{index}]")
    else:
        yield at, msgspec.to_builtins(value)


def read_document(path: Path) -> dict[str, Any]:
    """A TOML file, unchecked. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path, or write the file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; TOML files are UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return document


def _from_environment(
    env: Mapping[str, str], type_: type[msgspec.Struct], prefix: str, name: str
) -> Iterator[tuple[str, str, str]]:
    keys = {f"{prefix}_{key.replace('.', '_')}".upper(): key for key in leaves(type_) if key != "schema"}
    tables = tuple(f"{prefix}_{key}_".upper() for key, field in fields(type_).items() if struct(field))
    for variable in sorted(env):
        if variable in keys:
            yield variable, keys[variable], env[variable]
        elif tables and variable.startswith(tables):
            raise ConfigError(f"{variable}: {name} has no such key{nearest(variable, list(keys))}")
