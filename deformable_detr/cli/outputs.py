"""What a command is to write must have a place, which is found out before the work, not after."""

from pathlib import Path


def require_folder_place(option: str, folder: Path) -> None:
    """Refuse a folder that is none and cannot become one.

    Raises:
        ValueError: there is a file where the folder, or one above it, should be.
    """
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise ValueError(
                f"{option} must name a folder, or a place for one, got {folder}, "
                f"where {place} is a file; choose another place"
            )


def require_file_place(option: str, file: Path) -> None:
    """Refuse a file that cannot be written as there is a folder, or no place for its folder.

    Raises:
        ValueError: so it is.
    """
    if file.is_dir():
        raise ValueError(f"{option} must be a file, got the folder {file}; name a file in it")
    require_folder_place(option, file.parent)
