import subprocess
import sys
from pathlib import Path

# Removes features that Python lacks on Windows before the package is imported.
WITHOUT = """
import signal, sys
from pathlib import Path
import torch, torchvision
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGUSR1
signal.Signals = [number for number in signal.Signals if number.name != "SIGUSR1"]
import deformable_detr.workflows.training, deformable_detr.workflows.run_report
from deformable_detr.data.loader import build_loader
from deformable_detr.engine.memory import peak_memory
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.session import locked
from deformable_detr.engine.run.stopping import StopRequest
with StopRequest() as stop, locked(RunFolder(Path(sys.argv[1]))):
    stop.check()
print("started", peak_memory(torch.device("cpu")))
"""


def test_training_starts_without_features_missing_on_windows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "started {}\n", done.stderr
    assert "cannot be locked (not available on this platform)" in done.stderr
