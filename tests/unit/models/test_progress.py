"""Long work reports by name; each name has one bar, whatever its text says."""

import pytest

from headwater_models.progress import progress


def test_a_bar_shows_how_far_its_work_has_come(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("encoding items", 3, 8)
        report("questions", 1, 2)
        report("encoding items", 8, 8)
    shown = capsys.readouterr()
    assert "encoding items" in shown.err
    assert "8/8" in shown.err
    assert "1/2" in shown.err
    assert shown.out == ""  # standard output belongs to results


def test_what_follows_a_comma_changes_and_the_bar_stays_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("epoch, loss 0.9", 1, 2)
        report("epoch, loss 0.4", 2, 2)
    assert [line.strip() for line in capsys.readouterr().err.splitlines() if "epoch" in line][-1].startswith(
        "epoch, loss 0.4"
    )
    with progress() as report:
        report("epoch, loss 0.9", 1, 2)
        report("epoch, loss 0.4", 2, 2)
        assert len(report._tasks) == 1  # type: ignore[attr-defined]
