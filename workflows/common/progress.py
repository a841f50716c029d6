"""Progress of long-running work: on a terminal a bar with rate and time remaining, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # ids may contain [brackets] and :colons:
remarks = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)  # beside a command's output


class _Rate(ProgressColumn):
    """Units per second, with a k, M or G suffix."""

    def render(self, task: Task) -> Text:
        return Text(f"{human(task.finished_speed or task.speed or 0.0)} {task.fields['unit']}/s")


def human(number: float) -> str:
    """A count rounded to three significant digits: 987, 12.3 k, 4.56 M."""
    for scale, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * scale:  # rounds up to this scale at three digits
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"


class Stage:
    """One running stage; `advance` is thread-safe."""

    def __init__(self, progress: Progress, task_id: TaskID) -> None:
        self._progress, self._task_id = progress, task_id
        self._stopped = False

    def advance(self, amount: float) -> None:
        """
        Raises:
            CancelledError: the stage was stopped.
        """
        if self._stopped:
            raise CancelledError
        self._progress.advance(self._task_id, amount)

    def stop(self) -> None:
        """End the stage's work in other threads: their next `advance` raises."""
        self._stopped = True

    def note(self, text: str) -> None:
        """Show `text` after the bar (terminal only)."""
        self._progress.update(self._task_id, note=text)


@contextmanager
def stage(name: str, total: float | None, unit: str, done: int = 0, show_progress: bool = True) -> Iterator[Stage]:
    """Show the progress of one stage; without a terminal, print one line when it is done.

    Args:
        total: units of work, None if not known in advance.
        unit: name of the unit ("rows", "samples"), for the rate.
        done: units completed earlier.
        show_progress: whether to show anything.
    """
    started_s = time.perf_counter()
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (show_progress and console.is_terminal)) as progress:
        task_id = progress.add_task(name, total=total, completed=done, unit=unit, note="")
        yield Stage(progress, task_id)
        completed = progress.tasks[0].completed - done
    if show_progress and not console.is_terminal:
        elapsed_s = time.perf_counter() - started_s
        rate = human(completed / elapsed_s) if elapsed_s > 0 else "-"
        console.print(f"{name}: {completed:,.0f} {unit} in {elapsed_s:.1f} s ({rate} {unit}/s)")
