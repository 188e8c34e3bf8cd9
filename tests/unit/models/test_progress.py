"""Long work reports by name; each name has one bar, whatever its text says."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from headwater_models.progress import Lines, _Bars, progress


def test_without_a_terminal_progress_is_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("encoding items", 0, 8)
        report("questions", 1, 2)
        report("encoding items", 8, 8)
    shown = capsys.readouterr()
    assert [line.partition(",")[0] for line in shown.err.splitlines()] == [
        "encoding items: 0 of 8",
        "questions: 1 of 2",
    ]
    assert shown.out == ""  # standard output belongs to results


def test_what_follows_a_comma_changes_and_the_bar_stays_the_same() -> None:
    shown = io.StringIO()
    with Progress(console=Console(file=shown, force_terminal=True)) as progress:
        bars = _Bars(progress)
        bars("epoch, loss 0.9", 1, 2)
        bars("epoch, loss 0.4", 2, 2)
        bars("epoch, loss 0.3", 1, 2)
        assert [(task.description, task.completed) for task in progress.tasks] == [("epoch, loss 0.3", 1)]
    assert "epoch, loss 0.3" in shown.getvalue()


def test_lines_tell_the_time_that_is_left_and_how_an_epoch_goes_and_not_more_than_twice_a_minute() -> None:
    lines, now_s = list[str](), [0.0]
    report = Lines(lines.append, lambda: now_s[0])
    for epoch in (1, 2):
        for done in range(0, 101, 10):
            report(f"training, epoch {epoch}", done, 100)
            now_s[0] += 10
    assert lines == [
        "training, epoch 1: 0 of 100",
        "training, epoch 1: 30 of 100, 0:00:30 so far, 0:01:10 left",
        "training, epoch 1: 60 of 100, 0:01:00 so far, 0:00:40 left",
        "training, epoch 1: 90 of 100, 0:01:30 so far, 0:00:10 left",
        "training, epoch 1: 100 of 100, 0:01:40 so far, 0:00:00 left",
        "training, epoch 2: 20 of 100, 0:00:20 so far, 0:01:20 left",
        "training, epoch 2: 50 of 100, 0:00:50 so far, 0:00:50 left",
        "training, epoch 2: 80 of 100, 0:01:20 so far, 0:00:20 left",
    ]
