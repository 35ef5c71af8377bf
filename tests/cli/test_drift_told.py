"""What an operator reads of drift: the lines of `tierline status`, and refusals of `plan apply --tuned`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tierline.cli.commands.status import _tuning
from tierline.cli.main import main


def test_status_tells_what_is_measured_and_why_a_plan_came() -> None:
    decision = {"at": "2026-01-01T00:00:00Z", "plan": 4, "drift": ["up_mbps:gate 18.9 -> 1.1"], "did": "switched"}
    lines = _tuning(
        {
            "valid": {"up_mbps:gate": [3.1, 240.0], "rtt_ms:gate": [1.0, 9.5]},
            "measured": {"up_mbps:gate": 1.1},
            "decisions": [{**decision, "why": "plan 5: latency_mean_ms 62.1 -> 24.5"}],
        }
    )
    assert lines == [
        "measured now, and what the Plan holds for: up_mbps:gate 1.1 (3.1 to 240); rtt_ms:gate ? (1 to 9.5)",
        "2026-01-01T00:00:00Z plan 4: up_mbps:gate 18.9 -> 1.1: switched: plan 5: latency_mean_ms 62.1 -> 24.5",
    ]
    assert _tuning({}) == []


@pytest.mark.parametrize(
    ("argv", "said", "code"),
    [
        (["--tuned", "{}", "--bundle", "{}"], "give neither --bundle nor --plan with it", 2),
        (["--tuned", "{}"], "give a folder that `tierline tune --out` wrote", None),
        ([], "--bundle or --tuned", 2),
    ],
)
def test_what_is_no_tuned_folder_is_refused(
    argv: list[str], said: str, code: int | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = main(["plan", "apply", "127.0.0.1:1", *(word.format(tmp_path) for word in argv)])
    assert found == code if code is not None else found != 0
    assert said in capfd.readouterr().err
