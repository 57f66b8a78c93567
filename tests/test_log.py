"""What a run says: lines for programs that survive a kill, lines for people, and speeds that are divided right."""

import io
import json
import sys

import pytest
from rich.console import Console

from vitrail import log as logs
from vitrail.log import Log
from vitrail.progress import say

METRICS = {"loss": 0.5, "lr": 1e-3}


class Clock:
    """time.perf_counter, as a test says it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs.time, "perf_counter", clock)
    return clock


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_a_line_that_is_on_the_disk_at_once(tmp_path):
    with Log(tmp_path, total=3, done=0) as log:
        for step in (1, 2, 3):
            log.count(64, 0.0)
            log.step(step, {**METRICS, "gradient_norm": 2.0})
            assert [record["step"] for record in records(tmp_path)] == list(range(1, step + 1))
        log.write({"step": 3, "evaluation": {"accuracy": 0.5}})
        assert records(tmp_path)[3] == {"step": 3, "evaluation": {"accuracy": 0.5}}
    first = records(tmp_path)[0]
    assert first["loss"] == 0.5
    assert first["lr"] == 1e-3
    assert first["gradient_norm"] == 2.0


def test_speed_and_waiting_are_of_the_time_since_the_last_line(tmp_path, clock):
    with Log(tmp_path, total=10, done=0) as log:
        for waited in (0.5, 0.0, 0.5, 1.0):
            clock.now += 1
            log.count(64, waited)
        log.step(4, METRICS)
        clock.now += 2
        log.count(10, 0.25)
        log.step(5, METRICS)
    first, second = records(tmp_path)
    assert first["images_per_second"] == pytest.approx(64)
    assert first["data_wait"] == pytest.approx(0.5)
    assert second["images_per_second"] == pytest.approx(5)
    assert second["data_wait"] == pytest.approx(0.125)


def test_a_line_that_is_written_late_has_what_was_counted_when_it_was_due(tmp_path, clock):
    with Log(tmp_path, total=10, done=0) as log:
        clock.now += 1
        log.count(64, 0.5)
        log.mark()
        log.count(64, 0.25)  # of the next step, which the device gets first
        log.step(1, METRICS)
        clock.now += 1
        log.step(2, METRICS)
    first, second = records(tmp_path)
    assert (first["images_per_second"], first["data_wait"]) == (64, 0.5)
    assert (second["images_per_second"], second["data_wait"]) == (64, 0.25)


def waits(log, clock, seconds, share, first=1):
    """Lines of two seconds each, of which this share went by without images."""
    for step in range(first, first + seconds // 2):
        clock.now += 2
        log.count(64, 2 * share)
        log.step(step, METRICS)


def test_waiting_for_images_well_after_the_start_is_said_once(tmp_path, clock, capsys):
    with Log(tmp_path, total=1000, done=0) as log:
        waits(log, clock, 60, 0.9)  # caches fill, processes start
        waits(log, clock, 100, 0.04, 31)
        assert log.notes == []
        waits(log, clock, 8, 0.23, 81)  # eight seconds say little
        assert log.notes == []
        waits(log, clock, 40, 0.23, 85)
    text = "images come too slowly: training waited for them 23% of 10 s. "
    assert [note.startswith(text) for note in log.notes] == [True]
    assert "(--workers)" in log.notes[0]
    assert "(vitrail data pack)" in log.notes[0]
    assert capsys.readouterr().err.count("images come too slowly") == 1
    with Log(tmp_path, total=1000, done=500) as log:  # nor again after a resume
        waits(log, clock, 100, 0.9, 501)
        assert len(log.notes) == 1


def test_pauses_are_no_waiting(tmp_path, clock):
    with Log(tmp_path, total=1000, done=0) as log:
        waits(log, clock, 60, 0.0)
        for step in range(31, 61):
            clock.now += 12
            log.pause(10.0)
            log.count(64, 0.09)
            log.step(step, METRICS)
    assert log.notes == []


def test_a_pause_is_no_training_time(tmp_path, clock):
    with Log(tmp_path, total=10, done=0) as log:
        log.count(60, 1.0)
        clock.now += 5
        log.pause(3.0)
        log.step(1, METRICS)
        log.pause(4.0)  # after the line: it belongs to the next
        clock.now += 4 + 1
        log.count(60, 0.0)
        log.step(2, METRICS)
    first, second = records(tmp_path)
    assert first["images_per_second"] == pytest.approx(30)
    assert first["data_wait"] == pytest.approx(0.5)
    assert second["images_per_second"] == pytest.approx(60)
    assert second["data_wait"] == 0


@pytest.mark.usefixtures("clock")
def test_a_step_in_no_time_divides_by_nothing(tmp_path, capsys):
    with Log(tmp_path, total=1, done=0) as log:
        log.count(64, 0.0)
        log.step(1, METRICS)
        log.step(1, METRICS)
    assert records(tmp_path)[1]["images_per_second"] == 0
    assert "left 0:00" in capsys.readouterr().err


def test_a_run_resumed_at_its_end_divides_by_nothing(tmp_path, capsys):
    with Log(tmp_path, total=5, done=5) as log:
        log.step(5, METRICS)
    assert "step 5/5" in capsys.readouterr().err


def line(step, **more):
    return json.dumps({"step": step, **more}) + "\n"


@pytest.mark.parametrize("done", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', "{", "\0\0\0", '{"step": 5}'])
def test_resuming_takes_out_what_will_be_written_again(tmp_path, done, tail):
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


def test_a_first_run_makes_the_file(tmp_path):
    with Log(tmp_path, total=1, done=0):
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_the_end(tmp_path, clock, capsys):
    with Log(tmp_path, total=100, done=0) as log:
        for step in range(1, 101):
            clock.now += 1
            log.count(50, 0.04)
            log.step(step, METRICS)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    steps = [int(text.split()[1].split("/")[0]) for text in lines]
    assert steps == [11, 22, 33, 44, 55, 66, 77, 88, 99, 100]
    assert lines[0] == "step 11/100  loss 0.500  lr 1.00e-03  50 images/s  waiting for data 4.0%  left 1:29"
    assert lines[-1].endswith("left 0:00")


def test_the_time_that_is_left_counts_only_the_steps_of_this_process(tmp_path, clock, capsys):
    with Log(tmp_path, total=100, done=90) as log:
        clock.now += 20
        log.count(50, 0.0)
        log.step(91, METRICS)
    assert capsys.readouterr().err.endswith("left 3:00\n")


def test_a_long_line_is_not_broken_and_brackets_are_no_markup(tmp_path, capsys):
    text = "[bold]" + "word " * 60 + "[/]"
    with Log(tmp_path, total=1, done=0) as log:
        log.say(text)
    assert capsys.readouterr().err == text + "\n"


def test_on_a_terminal_a_bar_shows_how_far(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(logs, "Console", lambda **kind: Console(file=screen, force_terminal=True, width=160))
    with Log(tmp_path, total=10, done=4, what="fine-tuning") as log:
        log.count(64, 0.0)
        log.step(5, METRICS)
        log.say("a remark")
    shown = screen.getvalue()
    assert "fine-tuning" in shown
    assert "4/10" in shown or "5/10" in shown
    assert "a remark" in shown
    assert "step 5/10" not in shown  # the bar says it


def test_the_file_is_closed_after_an_exception(tmp_path):
    log = Log(tmp_path, total=1, done=0)
    with pytest.raises(RuntimeError, match="stop"), log:
        raise RuntimeError("stop")
    assert log.file.closed


def test_say_leaves_standard_output_alone(capsys):
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (0.2, "0:01"), (59.5, "1:00"), (61.0, "1:01"), (3599.5, "1:00:00"), (36061.0, "10:01:01")],
)
def test_the_clock_rounds_up_to_whole_seconds(seconds, text):
    assert logs._clock(seconds) == text


def test_an_evaluation_is_logged_once_a_step_and_known_after_a_resume(tmp_path):
    with Log(tmp_path, total=9, done=0) as log:
        log.evaluation(4, {"accuracy": 0.5})
        log.evaluation(4, {"accuracy": 0.6})
        log.evaluation(8, {"accuracy": 0.7})
    with Log(tmp_path, total=9, done=5) as log:
        assert log.evaluations == {4: {"accuracy": 0.5}}
    assert records(tmp_path) == [{"step": 4, "evaluation": {"accuracy": 0.5}}]


def test_a_note_is_said_and_kept_once(tmp_path, capsys):
    with Log(tmp_path, total=9, done=0) as log:
        for step in (1, 2):
            log.note(step, "skipped: a.jpg is cut short.")
    with Log(tmp_path, total=9, done=3) as log:
        log.note(3, "skipped: a.jpg is cut short.")
        assert log.notes == ["skipped: a.jpg is cut short."]
    assert records(tmp_path) == [{"step": 1, "note": "skipped: a.jpg is cut short."}]
    assert capsys.readouterr().err.count("cut short") == 1


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


def test_tensorboard_holds_the_same_numbers_and_forgets_what_is_run_again(tmp_path):
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
    assert [(e.step, e.value) for e in board.Scalars("held-back/accuracy")][-1] == (4, 0.5)


def test_without_tensorboard_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is not installed; pip install tensorboard"):
        Log(tmp_path, total=1, done=0, tensorboard=True)
