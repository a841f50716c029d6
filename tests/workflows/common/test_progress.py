"""Progress: one line without a terminal, a bar on a terminal, from any thread."""

from __future__ import annotations

import io
import re
import threading
from concurrent.futures import CancelledError

import pytest
from rich.console import Console

from workflows.common import progress
from workflows.common.progress import human, stage


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, soft_wrap=True, highlight=False))
    return text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (987, "987"),
        (1000, "1 k"),
        (12_345, "12.3 k"),
        (4_560_000, "4.56 M"),
        (2_500_000_000, "2.5 G"),
    ],
)
def test_human_readable_numbers(number: float, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize(("number", "text"), [(999.7, "1 k"), (999_900, "1 M"), (999_999_999, "1 G")])
def test_human_readable_numbers_just_below_the_next_suffix(number: float, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize("total", [4000, None])
def test_without_a_terminal_a_stage_prints_one_line(output: io.StringIO, total: float | None) -> None:
    with stage("encode", total, "rows") as running:
        running.advance(1500)
        running.note("shown on a terminal only")
        running.advance(2500)
        assert output.getvalue() == ""
    assert re.fullmatch(r"encode: 4,000 rows in \d+\.\d s \(\S+( [kMG])? rows/s\)\n", output.getvalue())


def test_threads_can_advance_a_stage_concurrently(output: io.StringIO) -> None:
    with stage("read", None, "bytes") as running:
        threads = [threading.Thread(target=lambda: [running.advance(1) for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert output.getvalue().startswith("read: 4,000 bytes in ")


def test_a_stopped_stage_ends_its_work(output: io.StringIO) -> None:
    with stage("read", 10, "bytes") as running:
        running.advance(1)
        running.stop()
        with pytest.raises(CancelledError):
            running.advance(1)
    assert output.getvalue().startswith("read: 1 bytes in ")


def test_a_failed_stage_does_not_report_completion(output: io.StringIO) -> None:
    with pytest.raises(ValueError, match="no"), stage("write", 10, "rows"):
        raise ValueError("no")
    assert output.getvalue() == ""


def test_on_a_terminal_a_stage_is_a_bar_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, force_terminal=True, width=120, color_system=None))
    with stage("train", 10, "samples") as running:
        running.advance(10)
        running.note("loss 0.25")
    show_progress = text.getvalue()
    assert "train" in show_progress
    assert "samples/s" in show_progress
    assert "loss 0.25" in show_progress
    assert "samples in" not in show_progress  # no summary line in addition to the bar


@pytest.mark.parametrize("text", ["[red]", "[/x]", "a[1]", "[link=x]y[/link]", ":smile:", "a:+1:b"])
def test_the_console_prints_text_verbatim(text: str) -> None:
    with progress.console.capture() as printed:
        progress.console.print(text)
    assert printed.get() == f"{text}\n"
