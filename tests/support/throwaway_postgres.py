"""A PostgreSQL cluster for as long as the tests run, from Debian's `postgresql`; no service is touched."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

USERS = ("postgres", "nobody")
"""Who may run a server for root, who may not."""
PASSWORD = "right"


def binaries() -> Path | None:
    """Folder of initdb and pg_ctl: on PATH, or where Debian puts the newest version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return versions[-1].parent if versions else None


def why_not() -> str:
    """Why no cluster can be made here; empty: it can."""
    if binaries() is None:
        return "no initdb: make databases installs PostgreSQL"
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or _user() is None):
        return f"root cannot run PostgreSQL, and there is no setpriv or none of the users {', '.join(USERS)}"
    return ""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The URL of its database `postgres`, user `tester`."""
    place = binaries()
    assert place is not None
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, as_user = Path(name), _as_user(Path(name))
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["-U", "tester", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale", "C"]
        _run([*as_user, str(place / "initdb"), "-D", str(folder / "data"), *options, f"--pwfile={password}"])
        port = free_port()
        settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        control = [*as_user, str(place / "pg_ctl"), "-D", str(folder / "data"), "-w"]
        _run([*control, "-o", settings, "-l", str(folder / "data" / "log"), "start"])
        try:
            yield f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def _user() -> str | None:
    for name in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


def _as_user(folder: Path) -> list[str]:
    """Words before a command of the server, whose user gets the folder."""
    if os.geteuid() != 0:
        return []
    user = _user()
    assert user is not None
    shutil.chown(folder, user)
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]


def _run(command: list[str]) -> None:
    nothing = subprocess.DEVNULL  # nor an output: the server would keep it open
    done = subprocess.run(command, stdin=nothing, stdout=nothing, stderr=nothing, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, f"status {done.returncode} of {command}"
