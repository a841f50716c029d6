"""How a command exits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch

from workflows.common.errors import UserError, run_command


def end_with(error: BaseException | None) -> None:
    def main() -> None:
        print("begun")
        if error is not None:
            raise error

    run_command(main)


def test_a_successful_command_prints_nothing_extra(capsys: pytest.CaptureFixture) -> None:
    end_with(None)
    assert capsys.readouterr() == ("begun\n", "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("--epochs should be 1 or more, got 0"), "error: --epochs should be 1 or more, got 0\n"),
        (PermissionError(13, "Permission denied", "/data"), "error: [Errno 13] Permission denied: '/data'\n"),
        (UserError("[bold] is no markup: [/x] :smile: " + "long " * 60), None),
    ],
)
def test_a_user_error_prints_one_message_and_exits_with_status_2(
    capsys: pytest.CaptureFixture, error: Exception, text: str | None
) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(error)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "begun\n"
    assert err == (text or f"error: {error}\n")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: bytearray(1 << 62),
        lambda: np.zeros(1 << 58),
        lambda: torch.zeros(1 << 58),
        lambda: pa.allocate_buffer(1 << 62),
    ],
    ids=["python", "numpy", "torch", "arrow"],
)
def test_too_little_memory_is_one_message(capsys: pytest.CaptureFixture, allocate: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: print(allocate()))
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: out of memory (")
    assert err.count("\n") == 1


def test_a_row_that_arrow_cannot_show_prints_no_traceback(capsys: pytest.CaptureFixture) -> None:
    options = pa.csv.ParseOptions(invalid_row_handler=lambda _: "skip")
    data = pa.py_buffer(b"1,2\n1,2,\xff\n")
    with pytest.raises(pa.ArrowInvalid):
        run_command(lambda: pa.csv.read_csv(data, parse_options=options))
    assert capsys.readouterr().err == ""


def test_an_interrupt_exits_with_status_130(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(KeyboardInterrupt())
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_runs_finally_blocks() -> None:
    closed = []

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            closed.append(True)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert closed == [True]


def test_an_internal_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        end_with(ZeroDivisionError())
