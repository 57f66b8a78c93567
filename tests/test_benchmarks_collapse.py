"""benchmarks.collapse: what is planted is trained, and the table says how it ended."""

import sys
from dataclasses import replace
from pathlib import Path

from command_line import photos

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import collapse


def test_planted_and_healthy_runs_are_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    data = photos(tmp_path / "photos", ("ash", "elm"), count=10)
    monkeypatch.setattr(collapse, "TASKS", ("mae",) * 3)
    full = collapse.unlabelled
    monkeypatch.setattr(collapse, "unlabelled", lambda *words, **more: replace(full(*words, **more), batch=4))
    monkeypatch.setattr(collapse, "PLANTED", [("views", {"batch": 4}), ("mae", {"constant": True})])
    assert collapse.main(["--data", str(data), "--runs", "1", "--steps", "22"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    refused, constant, healthy = rows[2:]
    assert (refused[:2], "batch of 4" in refused[2]) == (["planted: views, batch 4", ""], True)
    assert (constant[1], "all alike" in constant[2], "step-" in constant[2]) == ("1", True, False)
    assert healthy == ["healthy: mae, rate 1.0, seed 0", "", ""]
    assert "0 alarms in 1 healthy runs" in out
