"""`tierline demo` over a few samples: one basis for all its numbers, and a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tierline.cli.tables import tables
from tierline.cli.trial.answers import Answers
from tierline.cli.trial.measure import torch_disagreement
from tierline.core.bundle import Bundle

ASSETS = Path(__file__).parents[2] / "cli" / "tierline" / "cli" / "assets" / "digits"


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierline.cli.main", "demo", "--samples", "20", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_every_number_is_of_the_same_answers(tmp_path: Path) -> None:
    result = demo("--format", "json", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    answers = 20 * len(Bundle.open(ASSETS).manifest.views)
    by_exit = report["latency_ms"]["by_exit"]
    assert report["latency_ms"]["total"]["count"] == answers == sum(values["count"] for values in by_exit.values())
    assert {name: values["count"] / answers for name, values in by_exit.items()} == {
        name: share for name, share in report["exit_share"].items() if share
    }
    assert report["predictions"] == {
        "samples": 20,
        "equal_to_one_process": 20,
        "torch_disagreement": {"local": 0.0, "edge": 0.0, "cloud": 0.0},
    }
    assert tables(report)
    again = demo("--run-dir", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        f"tierline: --run-dir {tmp_path / 'run'}: holds a run already; give another folder, or remove this one\n"
    )


def test_torch_disagreement_is_read_from_the_bundle() -> None:
    assert torch_disagreement({"torch_disagreement": "local 0.0125, cloud 0.5000"}) == {"local": 0.0125, "cloud": 0.5}
    assert torch_disagreement({"data": "digits"}) == {}


def test_a_sample_counts_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    records = [
        {"id": {"seq": seq}, "num_views": num_views, "degraded": degraded, "index": index}
        for index, (seq, num_views, degraded) in enumerate(
            [(0, 2, False), (1, 1, False), (2, 2, True), (3, 2, False), (4, 2, False), (5, 2, False)]
        )
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"id"')
    answers = Answers({"v": file})
    answers.poll()
    assert {sample: record["index"] for sample, record in answers.samples("v", 3, 2).items()} == {0: 0, 1: 4, 2: 5}
    assert {sample: record["index"] for sample, record in answers.samples("v", 3, 2, 1).items()} == {0: 3, 1: 4, 2: 5}
