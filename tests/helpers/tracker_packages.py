"""Stand-ins of W&B and MLflow, which are not installed for the tests."""

import json
from pathlib import Path
from typing import Any


class StandIns:
    """Packages `wandb` and `mlflow` that note their calls, and fail as the variable FAULT says."""

    SOURCE = """
import json, os, sys, threading, time

def note(name, values):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([name, values]) + "\\n")
    call, fault = os.environ.get("FAULT", " ").split(" ")
    if call != name:
        return
    print("printed by the library")
    if fault == "raise":
        raise OSError("no network")
    if fault == "exit":
        sys.exit(3)
    if fault == "crash":
        os.kill(os.getpid(), 9)
    if fault in ("hang", "behind"):
        time.sleep(60)
    if fault == "thread":
        threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
"""
    WANDB = """
class Run:
    def define_metric(self, name, step_metric=None): pass
    def log(self, values): note("log", values)
    def finish(self): note("finish", {})

def init(**options):
    note("init", options)
    return Run()
"""
    MLFLOW = """
from types import SimpleNamespace

def start_run(**options):
    note("start_run", options)
    return SimpleNamespace(info=SimpleNamespace(run_id="given-id"))

def log_params(params): note("log_params", {"params": params})
def log_metrics(metrics, step): note("log_metrics", {"metrics": metrics, "step": step})
def end_run(): note("end_run", {})
"""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes.txt"
        folder.mkdir()
        (folder / "wandb.py").write_text(self.SOURCE + self.WANDB)
        (folder / "mlflow.py").write_text(self.SOURCE + self.MLFLOW)

    def calls(self) -> list[Any]:
        """Return the calls since the last look."""
        lines = self.notes.read_text().splitlines()
        self.notes.unlink()
        return [json.loads(line) for line in lines]
