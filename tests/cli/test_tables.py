"""Reports as terminal tables: what stands in which cell."""

from typing import Any

from rich.console import Console
from rich.table import Table

from tierline.cli.tables import tables

REPORT: dict[str, Any] = {
    "latency_ms": {
        "total": {"count": 1200, "p50": 9.5681, "p90": 75.51, "p99": 94.1},
        "by_exit": {"local": {"count": 1100, "p50": 8.4, "p90": 9.5, "p99": 10.94}},
        "spans": {
            "device": {
                "send": {"count": 9, "p50": 5.2, "p90": 6.0, "p99": 8.3571},
                "residual": {"count": 9, "p50": 0.1, "p90": 0.1, "p99": 0.2},
            },
            "edge": {
                "section": {"count": 9, "p50": 0.9, "p90": 1.0, "p99": 1.4},
                "residual": {"count": 9, "p50": 0.3, "p90": 0.3, "p99": 0.4},
            },
        },
        "residual_share_p50": {"device": 0.012, "edge": 0.065},
    },
    "exit_share": {"local": 0.9167, "none": 0.0833},
    "bytes_per_sample": {"device_edge": 153.6, "framing": {"device_edge": 97.5}, "raw": 3072, "formula": 150.0},
    "accuracy": {"device": [0.5, 0.625], "overall": 0.95},
    "accuracy_by_exit": {"local": 0.96},
}


def rows(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_every_part_of_a_report_becomes_a_table() -> None:
    latency, ledger, sizes, accuracy = tables(REPORT)
    assert rows(latency) == [
        ["local", "1,100", "91.7 %", "8.400", "9.500", "10.9"],
        ["none", "", "8.3 %", "", "", ""],
        ["all", "1,200", "", "9.568", "75.5", "94.1"],
    ]
    assert [column.header for column in ledger.columns] == ["span", "device", "edge"]
    assert rows(ledger) == [
        ["section", "", "0.900 / 1.400"],
        ["send", "5.200 / 8.357", ""],
        ["residual", "0.100 / 0.200", "0.300 / 0.400"],
        ["residual share", "1.2 %", "6.5 %"],
    ]
    assert rows(sizes) == [["device to edge", "153.6", "97.5", "3,072", "5.0 %", "150"]]
    assert rows(accuracy) == [
        ["device 0", "50.0 %", ""],
        ["device 1", "62.5 %", ""],
        ["local", "", "96.0 %"],
        ["overall", "95.0 %", ""],
    ]


def test_levels_are_listed_from_the_sensor_up() -> None:
    """Whichever answered first."""
    accuracy = {"device": [0.5], "local": 0.7, "edge": 0.8, "cloud": 0.9, "overall": 0.85, "one_device_lost": 0.8}
    (table,) = tables({"accuracy": accuracy, "accuracy_by_exit": {"edge": 0.6, "none": 0.1, "local": 0.9}})
    names = ["device 0", "local", "edge", "cloud", "none", "overall", "one device lost"]
    assert [row[0] for row in rows(table)] == names


def test_absent_parts_leave_no_table() -> None:
    (accuracy,) = tables({"accuracy": {"overall": 1.0}})
    assert rows(accuracy) == [["overall", "100.0 %"]]
    assert tables({}) == []


def test_tables_fit_a_terminal_of_eighty_columns() -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(*tables(REPORT))
    assert "5.200 / 8.357" in captured.get()
    assert max(len(line.rstrip()) for line in captured.get().splitlines()) <= 80


def test_a_hair_below_nothing_is_nothing() -> None:
    spans = {"device": {"residual": {"count": 9, "p50": -0.0004, "p99": -0.0006}}}
    latency = {**REPORT["latency_ms"], "spans": spans, "residual_share_p50": {"device": -0.0004}}
    console = Console(width=200)
    with console.capture() as capture:
        for table in tables({"latency_ms": latency}):
            console.print(table)
    text = capture.get()
    assert "-0.0 %" not in text
    assert "-0.000" not in text
    assert " 0.000 / -0.001 " in text
