"""Completion with the Tab key, by a real shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What bash does for the Tab key, without the key.
COMPLETE = """
eval "$(deformable-detr --show-completion)"
COMP_WORDS=({words}) COMP_CWORD={place}
_deformable_detr_completion deformable-detr
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("deformable-detr ev", ["evaluate"]),
        ("deformable-detr doctor b", ["bundle"]),
        ("deformable-detr train --res", ["--resume"]),
        ("deformable-detr convert a b --to trans", ["transformers"]),
        ("deformable-detr train --config dino_r50_o", ["dino_r50_official"]),
    ],
)
def test_bash_completes(tmp_path: Path, words: str, completed: list[str]) -> None:
    command = tmp_path / "deformable-detr"
    command.write_text(
        f"#!{sys.executable}\nfrom deformable_detr.cli.main import main\nmain()\n", encoding="utf-8"
    )
    command.chmod(0o755)
    package = str(Path(__file__).parents[3])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = COMPLETE.format(words=words, place=len(words.split()) - 1)

    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": package},
    )

    assert result.stderr == ""
    assert result.stdout.split() == completed
