"""Program of a tracker's process: passes records to TensorBoard, W&B or MLflow.

It runs as a script and imports nothing of the package. The first line of its input is a
`TrackerSetup`, each other line a record: a kind, and values by name. Its output is one line: empty
if every record was written, else the error.
"""

import json
import os
import queue
import re
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO, TypedDict

PROJECT = "deformable-detr"
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PARAMETERS = 100  # most of one MLflow request
_VALUE = 500  # most characters of an MLflow parameter


class TrackerSetup(TypedDict):
    """First line of the input.

    `path` is Python's `sys.path`, `folder` the run folder, `run_file` the file that keeps the
    tracker's id of the run, `first_step` the first step of this part of the run, `config` the
    settings by dotted key, and `close_s` the seconds to close in.
    """

    name: str
    path: list[str]
    folder: str
    run_file: str
    first_step: int
    config: dict[str, Any]
    close_s: float


class _Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, setup: TrackerSetup) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(Path(setup["folder"]) / "tensorboard"))
        if setup["first_step"] > 1:  # hides what an earlier part of the run wrote from here on
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=setup["first_step"], session_log=start))

    def log(self, values: Mapping[str, float], step: int) -> None:
        rows = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summary(value=rows)
        self._writer.add_event(self._event(wall_time=_now(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases; offline unless the environment variable WANDB_MODE is set."""

    def __init__(self, setup: TrackerSetup) -> None:
        import wandb

        run_id = _read_id(setup) or uuid.uuid4().hex
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=Path(setup["folder"]).name,
            dir=setup["folder"],
            id=run_id,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=setup["config"],
            allow_val_change=True,
        )
        _write_id(setup, run_id)
        # An axis of our own: W&B's own step must grow, and would drop steps that are repeated.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, at the place that its own environment variables name."""

    def __init__(self, setup: TrackerSetup) -> None:
        import mlflow

        self._mlflow = mlflow
        if known := _read_id(setup):
            mlflow.start_run(run_id=known)
            return
        run = mlflow.start_run(run_name=Path(setup["folder"]).name)
        _write_id(setup, run.info.run_id)
        rows = [(key, json.dumps(value)[:_VALUE]) for key, value in setup["config"].items()]
        for first in range(0, len(rows), _PARAMETERS):
            mlflow.log_params(dict(rows[first : first + _PARAMETERS]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[TrackerSetup], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}


def _now() -> float:
    import time

    return time.time()


def _read_id(setup: TrackerSetup) -> str | None:
    """Return the tracker's id of an earlier part of the run; None if there is none."""
    try:
        text = Path(setup["run_file"]).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if _RUN_ID.fullmatch(text) else None


def _write_id(setup: TrackerSetup, run_id: str) -> None:
    path = Path(setup["run_file"])
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(run_id + "\n", encoding="ascii")
    temporary.replace(path)


def numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by KIND/NAME, without its step."""
    return {
        f"{kind}/{name}": value
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float)
    }


def _read_lines(lines: TextIO, into: "queue.Queue[str]", close_s: float) -> None:
    """Pass on the lines, then "" at the end; a library that hangs has `close_s` from there."""
    for line in lines:
        into.put(line)
    into.put("")
    timer = threading.Timer(close_s, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _track(lines: TextIO) -> None:
    setup: TrackerSetup = json.loads(lines.readline())
    sys.path[:] = setup["path"]
    waiting: queue.Queue[str] = queue.Queue()
    arguments = (lines, waiting, setup["close_s"])
    threading.Thread(target=_read_lines, args=arguments, daemon=True).start()
    tracker = TRACKERS[setup["name"]](setup)
    while line := waiting.get():
        kind, values = json.loads(line)
        if found := numbers(kind, values):
            tracker.log(found, values["step"])
    tracker.close()


def main() -> None:
    """Track records until the end of the input, then end without waiting for any thread."""
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)  # a question of a library must not read records
    os.dup2(2, 1)  # and its prints are no report
    error = ""
    try:
        _track(lines)
    except BaseException as caught:  # of any kind, as libraries may also end the process
        error = " ".join(f"{type(caught).__name__}: {caught}".split())
    report.write(error + "\n")
    report.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if error else 0)


if __name__ == "__main__":
    main()
