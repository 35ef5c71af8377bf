"""What a round of federated averaging costs besides the local work, here and in Flower: the same model, one worker, no
training, one after the other on one machine.

Ours is `bench_rounds.py` with its journal on disk: a worker and a coordinator as processes. Flower's is a SuperLink, a
SuperNode and its own FedAvg (`flower_app/`), each app in a process of its own, as the isolation mode says. Both times
are from the end of a round to the end of the next. Flower polls: its server asks for replies every 3 s, and its node
asks for work every 3 s, both written into its code, with no option; rounds are as long as that makes them. A second run
cuts every sleep of its processes to 20 ms from outside, which shows what is left without the waiting.

Flower lives in a virtual environment of its own:

    python -m venv flower && flower/bin/pip install -r benchmarks/flower_app/requirements.txt
    python benchmarks/bench_flower.py --flower flower [--mb 4] [--rounds 8] [--isolation subprocess]

Limit: Flower's round takes at least three times as long. Prints one JSON line; exit code 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tierline.core.telemetry.environment import environment

HERE = Path(__file__).parent
LIMIT = 3.0
SHORT_S = 0.02
SHORT_SLEEPS = f"""import time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, {SHORT_S}))
"""
TIMEOUT_S = 240.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def flower_rounds(
    home: Path, num_values: int, rounds: int, isolation: str, folder: Path, *, short_sleeps: bool
) -> list[float]:
    """Seconds of each round but the first."""
    bin_, link, node, out = home.absolute() / "bin", free_port(), free_port(), folder / "ends.json"
    env = {**os.environ, "FLWR_HOME": str(folder / "home"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    for key in ("PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(key, None)
    if short_sleeps:
        (folder / "sitecustomize.py").write_text(SHORT_SLEEPS)
        env["PYTHONPATH"] = str(folder)
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    superlink = [f"{bin_}/flower-superlink", "--insecure", "--isolation", isolation, "--port", str(link)]
    supernode = [f"{bin_}/flower-supernode", "--insecure", "--isolation", isolation, "--port", str(node)]
    supernode += ["--superlink", f"127.0.0.1:{link}"]
    config = f"values={num_values} rounds={rounds} out='{out}'"
    run = [f"{bin_}/flwr", "run", str(HERE / "flower_app"), "bench", "--run-config", config]
    with (
        running([*superlink, "--disable-runtime-dependency-installation"], folder / "superlink.log", env),
        contextlib.ExitStack() as stack,
    ):
        wait_for(link)
        stack.enter_context(running(supernode, folder / "supernode.log", env))
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise SystemExit(f"flwr run: {done.stdout}{done.stderr}")
        deadline = time.monotonic() + TIMEOUT_S
        while not out.exists():
            if time.monotonic() > deadline:
                logs = "\n".join(f.read_text()[-3000:] for f in folder.glob("*.log"))
                raise SystemExit(f"Flower did not finish in {TIMEOUT_S:g} s\n{logs}")
            time.sleep(0.2)
        time.sleep(0.2)
    ends = json.loads(out.read_text())
    return [b - a for a, b in itertools.pairwise(ends)]


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    raise SystemExit("Flower's SuperLink does not listen")


def our_round_ms(mb: float, rounds: int) -> float:
    command = [sys.executable, str(HERE / "bench_rounds.py"), "--mb", str(mb), "--rounds", str(rounds)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout.splitlines()
    return next(float(row["round_ms"]) for row in map(json.loads, lines) if row["case"] == "journal on disk")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flower", type=Path, required=True, help="virtual environment with flwr")
    parser.add_argument("--mb", type=float, default=4.0, help="length of the model")
    parser.add_argument("--rounds", type=int, default=8, help="of Flower")
    parser.add_argument("--isolation", choices=("subprocess", "process"), default="subprocess")
    options = parser.parse_args()
    version = subprocess.run(
        [options.flower / "bin" / "python", "-c", "import importlib.metadata as m; print(m.version('flwr'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    num_values, found = int(options.mb * 1e6 / 4), []
    for short_sleeps in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            theirs = flower_rounds(
                options.flower, num_values, options.rounds, options.isolation, Path(folder), short_sleeps=short_sleeps
            )
            found.append(statistics.median(theirs) * 1e3)
    ours = our_round_ms(options.mb, 20)
    flower_ms, short_ms = found
    result: dict[str, Any] = {
        "benchmark": "flower",
        "model_mb": options.mb,
        "round_ms": ours,
        "flower_round_ms": round(flower_ms, 1),
        "flower_round_ms_short_sleeps": round(short_ms, 1),
        "flower": {"version": version, "isolation": options.isolation, "polls_every_s": 3.0, "rounds": options.rounds},
        "ratio": round(flower_ms / ours, 1),
        "ratio_short_sleeps": round(short_ms / ours, 1),
        "holds": flower_ms >= LIMIT * ours,
    }
    print(json.dumps(result | {"environment": environment()}), flush=True)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
