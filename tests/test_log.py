"""Logging: lines for programs that survive a kill and are read back, lines for people, and speeds divided right."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
from rich.console import Console

from vitrail import log as logs
from vitrail.log import Log, Watch, read_history
from vitrail.progress import say, track

METRICS = {"loss": 0.5, "lr": 1e-3}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(logs.time, "perf_counter", lambda: clock.now)
    return clock


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_a_line_that_is_on_the_disk_at_once(tmp_path):
    with Log(tmp_path, total=3, done=0) as log:
        assert (tmp_path / "metrics.jsonl").read_text() == ""
        for step in (1, 2, 3):
            log.count(64, 0.0)
            log.step(step, {**METRICS, "gradient_norm": 2.0})
            assert [record["step"] for record in records(tmp_path)] == list(range(1, step + 1))
        log.write({"step": 3, "evaluation": {"accuracy": 0.5}})
        assert records(tmp_path)[3] == {"step": 3, "evaluation": {"accuracy": 0.5}}
    assert {**METRICS, "gradient_norm": 2.0}.items() <= records(tmp_path)[0].items()


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # A line is of the time since the last one.
        ("+1 64/.5  +1 64/0  +1 64/.5  +1 64/1  line  +2 10/.25  line", [(64, 0.5), (5, 0.125)]),
        # One that is written late has what was counted when it was due, not the next step, which the device gets first.
        ("+1 64/.5  mark  64/.25  line  +1  line", [(64, 0.5), (64, 0.25)]),
        # A pause is no time of training: of this line, and of the next one.
        ("60/1  +5 -3  line  -4 +5 60/0  line", [(30, 0.5), (60, 0)]),
    ],
)
def test_speed_and_waiting_are_of_the_time_that_a_line_is_of(tmp_path, clock, events, expected):
    with Log(tmp_path, total=10, done=0) as log:
        for event in events.split():
            if event == "line":
                log.step(1, METRICS)
            elif event == "mark":
                log.mark()
            elif event[0] == "+":
                clock.now += int(event)
            elif event[0] == "-":
                log.pause(-float(event))
            else:
                images, waited = event.split("/")
                log.count(int(images), float(waited))
    assert [(r["images_per_second"], r["data_wait"]) for r in records(tmp_path)] == expected


def waits(log, clock, seconds, fraction, first=1, pause=0.0):
    """Lines of two seconds each, of which this fraction went by without images."""
    for step in range(first, first + seconds // 2):
        clock.now += 2 + pause
        log.pause(pause)
        log.count(64, 2 * fraction)
        log.step(step, METRICS)


def test_waiting_for_images_well_after_the_start_is_noted_once(tmp_path, clock, capsys):
    with Log(tmp_path, total=1000, done=0) as log:
        waits(log, clock, 60, 0.9)  # caches fill, processes start
        waits(log, clock, 100, 0.04, 31)
        waits(log, clock, 8, 0.23, 81)  # eight seconds mean little
        assert log.notes == []
        waits(log, clock, 40, 0.23, 85, pause=10.0)
    [note] = log.notes
    for words in (logs.SLOW, "23% of 10 s", "--workers", "vitrail data pack"):
        assert words in note
    assert capsys.readouterr().err.count(logs.SLOW) == 1
    with Log(tmp_path, total=1000, done=500) as log:  # nor again after a resume
        waits(log, clock, 100, 0.9, 501)
        assert log.notes == [note]


@pytest.mark.usefixtures("clock")
def test_a_step_in_no_time_and_a_run_resumed_at_its_end_divide_by_nothing(tmp_path, capsys):
    with Log(tmp_path, total=1, done=0) as log:
        log.count(64, 0.0)
        log.step(1, METRICS)
        log.step(1, METRICS)
    assert records(tmp_path)[1]["images_per_second"] == 0
    with Log(tmp_path, total=1, done=1) as log:
        log.step(1, METRICS)
    assert capsys.readouterr().err.count("left 0:00:00") == 3


def line(step, **more):
    return json.dumps({"step": step, **more}) + "\n"


@pytest.mark.parametrize("done", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', "{", "\0\0\0", '{"step": 5}'])
def test_resuming_removes_what_will_be_written_again(tmp_path, done, tail):
    path = tmp_path / "metrics.jsonl"
    whole = [line(1), line(2), line(2, evaluation={"accuracy": 0.5}), line(3), line(4)]
    path.write_text("".join(whole) + tail)
    with Log(tmp_path, total=9, done=done) as log:
        kept = [json.loads(text) for text in whole if json.loads(text)["step"] <= done]
        kept += [{"step": 5}] * (tail == '{"step": 5}' and done >= 5)
        assert records(tmp_path) == kept
        log.write({"step": 9})
    assert records(tmp_path) == [*kept, {"step": 9}]
    assert path.read_text().endswith("\n")


def test_a_kill_while_the_file_is_shortened_costs_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2))

    def killed(self, text):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_text", killed)
        with pytest.raises(MemoryError):
            Log(tmp_path, total=9, done=1)
    assert path.read_text() == line(1) + line(2)


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end(tmp_path, clock, capsys):
    with Log(tmp_path, total=100, done=0) as log:
        for step in range(1, 101):
            clock.now += 1
            log.count(50, 0.04)
            log.step(step, METRICS)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [out, *(text.split("/")[0] for text in lines)] == ["", *(f"step {n}" for n in [*range(11, 100, 11), 100])]
    assert lines[0] == "step 11/100  loss 0.500  lr 1.00e-03  50 images/s  waiting for data 4.0%  left 0:01:29"


@pytest.mark.parametrize(("seconds", "left"), [(20, "0:03:00"), (0.1, "0:00:01"), (399.999, "1:00:00")])
def test_the_time_that_is_left_counts_only_the_steps_of_this_process(tmp_path, clock, capsys, seconds, left):
    with Log(tmp_path, total=100, done=90) as log:
        log.spoke = -100.0  # long ago
        clock.now += seconds
        log.step(91, METRICS)
    assert capsys.readouterr().err.endswith(f"left {left}\n")


def test_a_long_line_is_not_broken_and_brackets_are_not_markup(tmp_path, capsys):
    text = "[bold]" + "word " * 60 + "[/]"
    with Log(tmp_path, total=1, done=0) as log:
        log.say(text)
    say(text)
    assert capsys.readouterr() == ("", f"{text}\n{text}\n")


def test_on_a_terminal_a_bar_shows_how_far(tmp_path, monkeypatch):
    screen = io.StringIO()
    for place in (logs, rich.console):
        monkeypatch.setattr(place, "Console", lambda **kind: Console(file=screen, force_terminal=True, width=160))
    with Log(tmp_path, total=10, done=4) as log:
        log.count(64, 0.0)
        log.step(5, METRICS)
        log.say("a remark")
        assert list(track(range(3), 3, "features")) == [0, 1, 2]  # of an evaluator: no second bar
    shown = screen.getvalue()
    assert "features" not in shown
    assert list(track(range(3), 3, "afterwards")) == [0, 1, 2]
    assert "afterwards" in screen.getvalue()
    assert all(words in shown for words in ("training", "/10", "a remark"))
    assert "step 5/10" not in shown  # the bar shows it


def test_long_work_yields_its_items_and_a_line_now_and_then(clock, capsys):
    for item in track(range(4), 4, "packing"):
        clock.now += 6 * (item + 1)
    assert capsys.readouterr() == ("", "packing 2/4  9.0 s each\npacking 3/4  12.0 s each\npacking 4/4  15.0 s each\n")


def test_an_evaluation_and_a_note_are_logged_once_and_known_after_a_resume(tmp_path, capsys):
    note = "skipped: a.jpg is cut short."
    with Log(tmp_path, total=9, done=0) as log:
        for step, accuracy in ((4, 0.5), (4, 0.6), (8, 0.7)):
            log.evaluation(step, {"accuracy": accuracy})
            log.note(4, note)
    with Log(tmp_path, total=9, done=5) as log:
        log.note(5, note)
        assert (log.evaluations, log.notes) == ({4: {"accuracy": 0.5}}, [note])
    assert records(tmp_path) == [{"step": 4, "evaluation": {"accuracy": 0.5}}, {"step": 4, "note": note}]
    assert capsys.readouterr().err.count("cut short") == 1


def test_tensorboard_holds_the_same_numbers_and_forgets_what_is_run_again(tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for done, last in ((0, 4), (2, 4)):
        with Log(tmp_path, total=4, done=done, tensorboard=True) as log:
            for step in range(done + 1, last + 1):
                log.step(step, {**METRICS, "loss": float(step + done)})
            log.evaluation(4, {"accuracy": 0.5})
    board = tensorboard.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = {event.step: event.value for event in board.Scalars("training/loss")}
    assert found == {1: 1.0, 2: 2.0, 3: 5.0, 4: 6.0}
    assert [(e.step, e.value) for e in board.Scalars("validation/accuracy")][-1] == (4, 0.5)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        Log(tmp_path, total=1, done=0, tensorboard=True)


def history(path, *lines):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts), "utf-8", "replace")
    return read_history(path)


def test_training_and_evaluations_are_series_by_step(tmp_path):
    found = history(
        tmp_path / "metrics.jsonl",
        {"step": 10, "loss": 2.5, "lr": 0.1},
        {"step": 20, "loss": 2, "accuracy": 0.5, "note": "words are not a series"},
        {"step": 20, "evaluation": {"accuracy": 0.4, "loss": 3.0}},
        {"step": 25, "note": "x.jpg is damaged"},
        {"step": 30, "loss": float("nan")},
    )
    steps = {name: steps.tolist() for name, (steps, _) in found.training.items()}
    assert steps == {"loss": [10, 20, 30], "lr": [10], "accuracy": [20]}
    assert found.training["loss"][1] == pytest.approx([2.5, 2, np.nan], nan_ok=True)
    pairs = {name: [axis.tolist() for axis in pair] for name, pair in found.evaluations.items()}
    assert pairs == {"accuracy": [[20], [0.4]], "loss": [[20], [3.0]]}


@pytest.mark.parametrize(
    "line",
    ["", '{"step": 20, "lo', "null", "[]", "7", '"step"', "{}", '{"step": null}', '{"step": {}}', "\0", "[" * 100_000],
)
def test_what_is_not_a_record_is_left_out(tmp_path, line):
    found = history(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1}, line, {"step": 3, "loss": 3})
    assert found.training["loss"][0].tolist() == [1, 3]


def test_time_and_speed_are_of_all_steps_and_weighted_by_time(tmp_path):
    found = history(
        tmp_path / "metrics.jsonl",
        {"step": 10, "images_per_second": 100, "data_wait": 0.5},  # 10 s
        {"step": 40, "images_per_second": 300, "data_wait": 0.2},  # 10 s
        {"step": 60, "images_per_second": 50, "data_wait": 0.0},  # 40 s
    )
    assert found.speed(100) == pytest.approx((60, 100, 7 / 60))
    assert history(tmp_path / "m.jsonl", {"step": 5, "images_per_second": 10}).speed(4) == pytest.approx((2, 10, 0))
    assert read_history(tmp_path / "no such file").speed(64) == (0, 0, 0)


@pytest.mark.parametrize("peak", [4e9, float("nan")])
def test_how_well_devices_are_used_is_logged(tmp_path, clock, capsys, peak):
    others = np.array([[0.5, 2.0]])  # another process waits half of the time, and has 2 GiB
    watch = Watch(10_000_000, peak, lambda: 2**29, lambda mine: np.concatenate([mine, others]))
    with Log(tmp_path, total=1, done=0, watch=watch) as log:
        clock.now += 2
        log.count(400, 0.2)
        log.step(1, METRICS)
    (record,) = records(tmp_path)
    assert (record["tflops"], record.get("mfu")) == (0.002, 0.5 if peak == 4e9 else None)
    assert record["ranks"] == {"data_wait": [0.1, 0.5], "memory_gib": [0.5, 2.0]}
    assert (record["memory_gib"], record["data_wait"]) == (0.5, 0.5)
    said = capsys.readouterr().err
    assert ("50.0% MFU" if peak == 4e9 else "0.00 TFLOP/s") in said
    assert "waiting for data 50.0% (rank 1)" in said
