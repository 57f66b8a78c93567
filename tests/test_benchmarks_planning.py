"""benchmarks.planning: what it counts is there. Nothing is timed."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import planning, rounds


@pytest.mark.parametrize("again", [False, True])
def test_memory_and_operations_are_measured(again):
    run = planning.run_of("ViT-Ti/16", 64, 2, "adamw", again)
    told, held = planning.memory(run)
    assert told == pytest.approx(held, rel=0.06)
    told, counted = planning.operations(run)
    assert told == counted
    assert planning.needs(run)[0] == told * (4 if again else 3) * 2


def test_the_table_has_what_was_measured():
    record = rounds.new("a step", "foretold", memory=(110 << 20, 100 << 20), operations=(7, 5))
    series = {"foretold": [1.1, 1.1, 1.1], "measured": [1.0, 1.0, 1.0]}
    turns = {name: lambda left=list(said): {"seconds": left.pop()} for name, said in series.items()}
    rounds.take_turns(record, turns, 3)
    row = [cell.strip() for cell in planning.text([record]).splitlines()[2].strip("|").split("|")]
    assert row == ["a step", "110", "100", "+10.0%", "+2", "1 (1 to 1)", "1.100 (1.100 to 1.100)"]
