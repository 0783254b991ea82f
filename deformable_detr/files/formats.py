"""Recognition of files that are of another kind than the one that is wanted."""

from pathlib import Path

TO_COCO = "convert the annotations to COCO JSON"
_HEAD = 4096
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"PK\x03\x04", "a ZIP file, such as a checkpoint of PyTorch"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80\x02", "a pickle, such as a checkpoint of PyTorch"),
)


def recognize(file: Path) -> str:
    """Return what a file is by its first bytes, with an article; "" if that is not clear.

    Args:
        file: a regular file that exists.
    """
    with file.open("rb") as opened:
        return kind_of_content(opened.read(_HEAD))


def kind_of_content(content: bytes) -> str:
    """Return what a file with this content is, as `recognize` does."""
    head = content[:_HEAD]
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if b"\x00" in head[:64]:
        return "a safetensors file" if head[8:9] == b"{" else ""
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text:
        return "an empty file"
    if text.startswith("<"):
        return "an XML file of Pascal VOC" if "<annotation" in text else "an XML or HTML file"
    if text.startswith(("{", "[")):
        return "a JSON file"
    first = next((line for line in text.splitlines() if line and line[0] not in "#-"), "")
    name, colon, _ = first.partition(":")
    if colon and name.replace("_", "").isalnum():
        return "a YAML file"
    if all(part.replace(".", "").isdecimal() for part in first.split()) and len(first.split()) == 5:
        return "a label file of YOLO"
    return ""


def kind_of_folder(folder: Path) -> str:
    """Return what a folder is, for an error where a file is wanted."""
    try:
        names = [entry.name for entry in _first_entries(folder)]
    except OSError:  # it cannot be listed
        return "a folder"
    if "config.yaml" in names and any(name.endswith(".pth") for name in names):
        return "a run folder"
    if any(name.endswith(".xml") for name in names):
        return f"a folder of XML files, as Pascal VOC has; {TO_COCO}"
    return "a folder"


def _first_entries(folder: Path) -> list[Path]:
    return [entry for entry, _ in zip(folder.iterdir(), range(1000), strict=False)]
