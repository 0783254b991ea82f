"""Check of data sets: every problem in one pass, and a repaired copy."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deformable_detr.arguments import checked, require_integer
from deformable_detr.coco_json.reading import read_json
from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.recognition import recognize_data
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.files import as_path, require_regular_file, write_whole
from deformable_detr.files.output_folder import require_file_place, require_folder_place
from deformable_detr.finite import to_json
from deformable_detr.inspection.agreement import inspect_agreement
from deformable_detr.inspection.content import entries_of, inspect_content
from deformable_detr.inspection.findings import Finding, Findings
from deformable_detr.inspection.kinds import KINDS, Level
from deformable_detr.inspection.photo_files import PhotoFile, read_photos
from deformable_detr.inspection.photos_of_set import inspect_photos, photo_names
from deformable_detr.inspection.repair import Repair
from deformable_detr.messages import shown

NUM_QUERIES = 300  # of the default configs
SPLITS = ("train", "val")


@dataclass(frozen=True)
class DataCheck:
    """Result of `check_data`.

    Attributes:
        files: the annotation files that were checked.
        num_images: entries of `images` in all of them.
        num_annotations: entries of `annotations` in all of them.
        findings: what was found, by file and kind; of a kind and file the first 1000.
        counts: number of findings by kind, in the order of their table.
        repairs: number of changes in the repaired copy, by description.
        fixed: the repaired copy; None if none was written, as of a file that is no JSON.
        left: findings of level "error" that are left in the repaired copy, or prevent it.
    """

    files: tuple[Path, ...]
    num_images: int
    num_annotations: int
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    repairs: Mapping[str, int] = field(default_factory=dict)
    fixed: Path | None = None
    left: tuple[Finding, ...] = ()

    @checked
    def count(self, level: Level) -> int:
        """Return the number of findings of a level: "error", "warning" or "count"."""
        return sum(number for kind, number in self.counts.items() if KINDS[kind].level == level)

    @checked
    def as_json(self, *, examples: int = 100) -> dict[str, Any]:
        """Return plain values for JSON, with the first `examples` findings of each kind."""
        require_integer("examples", examples, at_least=0)
        seen: Counter[str] = Counter()
        kept = []
        for finding in self.findings:
            seen[finding.kind] += 1
            if seen[finding.kind] <= examples:
                kept.append(finding.as_json())
        return {
            "files": [shown(file) for file in self.files],
            "num_images": self.num_images,
            "num_annotations": self.num_annotations,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "counts": dict(self.counts),
            "findings": kept,
            "fixed": None if self.fixed is None else shown(self.fixed),
            "repairs": dict(self.repairs),
            "left": [finding.as_json() for finding in self.left[:examples]],
        }


@dataclass
class _Set:
    """An annotation file, its images and what was found about both."""

    file: Path
    images: Path | None
    findings: Findings
    record: Any = None
    photos: dict[str, PhotoFile] = field(default_factory=dict)
    source: AnnotatedSet | None = None  # of a format other than COCO JSON

    def inspect(self, *, callback: Callback | None = None) -> None:
        """Add the findings about the content and the images that have not been read yet."""
        inspect_content(self.record, self.findings, num_queries=NUM_QUERIES)
        if self.images is None:
            return
        if not self.images.is_dir():
            self.findings.add("folder-missing", f"no folder {shown(self.images)}")
            return
        names = [name for name in photo_names(self.record) if name not in self.photos]
        if names:
            read = read_photos(self.images, names)
            name = f"reading {self.images.name}"
            self.photos.update(Tracked(read, name, total=len(names), callback=callback))
        listed = {name: self.photos[name] for name in photo_names(self.record)}
        inspect_photos(self.record, self.images, listed, self.findings)


@checked
def check_data(
    path: str | Path,
    *,
    images: str | Path | None = None,
    photos: bool = True,
    fix: str | Path | None = None,
    callback: Callback | None = None,
) -> DataCheck:
    """Find every problem of a data set in one pass, and write a repaired copy if wanted.

    Args:
        path: a data set of any format that `train` takes: its folder, an annotation file in COCO
            format, or the YAML file of YOLO.
        images: folder of the images of an annotation file; None takes the folder of the same name
            without `.json`.
        photos: decode every image; False looks at no image file.
        fix: path of a repaired annotation file, or folder if `path` is one; nothing may be there.
            The folder gets links to the folders of the images. Only for an annotation file in COCO
            format, and for a folder with `train.json`, `train`, `val.json` and `val`.
        callback: called with "progress" and {"done": ..., "total": ...} after each image.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no folder of the images.
        ValueError: `path` is no file and no folder of the layout, or `fix` exists.
    """
    path = as_path("path", path)
    images = None if images is None else as_path("images", images)
    sets = _sets(path, images, photos=photos)
    if fix is not None and not _is_repairable(path):
        raise ValueError(
            "fix must be None for data other than a COCO file or a folder with train.json and "
            f"val.json, got {shown(fix)}; `deformable-detr data convert` writes such a folder"
        )
    fix = None if fix is None else _require_new(as_path("fix", fix), path, images)
    for one in sets:
        _read(one)
        if one.record is not None:
            one.inspect(callback=callback)
    _inspect_together(sets)
    check = _result(sets)
    if fix is None:
        return check
    if not all(isinstance(one.record, dict) for one in sets):
        errors = tuple(finding for finding in check.findings if finding.level == "error")
        return replace(check, left=errors)
    return _write_repaired(check, sets, path, fix)


def _sets(path: Path, images: Path | None, *, photos: bool) -> list[_Set]:
    is_other = not path.is_dir() and path.suffix.lower() in (".yaml", ".yml")
    if path.is_dir() or is_other:
        if images is not None:
            raise ValueError(
                "images must be None for a folder, which has images of its own, got "
                f"{shown(images)}; name one annotation file"
            )
        if is_other or not _is_repairable(path):
            return _recognized(path, photos=photos)
        files = {split: path / f"{split}.json" for split in SPLITS}
        return [
            _Set(file, path / split if photos else None, Findings(file))
            for split, file in files.items()
        ]
    require_regular_file(path, "annotation file")
    if not photos:
        return [_Set(path, None, Findings(path))]
    [folder] = _image_folders(path, images)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"images must be a folder, got {shown(folder)}: no such folder; name it with --images "
            "DIR, or leave the image files out with --no-photos"
        )
    return [_Set(path, folder, Findings(path))]


def _is_repairable(path: Path) -> bool:
    """Return whether a path is an annotation file, or a folder of our layout."""
    if path.is_dir():
        return any((path / f"{split}.json").exists() for split in SPLITS)
    return path.suffix.lower() not in (".yaml", ".yml")


def _recognized(path: Path, *, photos: bool) -> list[_Set]:
    """Return the sets of a folder of another layout or format."""
    found = recognize_data(path)
    sets = [
        _Set(one.annotations, one.images if photos else None, Findings(one.annotations))
        for one in found.coco.values()
    ]
    for source in found.sets.values():
        findings = Findings(path, source.places)
        for fault in source.faults:
            findings.add(fault.kind, str(fault))
        folder = source.images if photos else None
        sets.append(_Set(path, folder, findings, source.record, source=source))
    return sets


def _image_folders(path: Path, images: Path | None) -> list[Path]:
    """List the folders of the images, read or not."""
    if path.is_dir():
        return [path / split for split in SPLITS]
    return [path.with_suffix("") if images is None else images]


def _require_new(fix: Path, path: Path, images: Path | None) -> Path:
    if "\0" in str(fix):
        raise ValueError(f"fix must be a path, got {shown(fix)}, with a null byte")
    if path.is_dir():
        require_folder_place("fix", fix)
    else:
        require_file_place("fix", fix)
    _require_nothing_at(fix, path)
    for folder in _image_folders(path, images):
        if fix.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"fix must be outside the folder of the images, got {shown(fix)}; nothing is "
                "written there"
            )
    _require_writable(fix if path.is_dir() else fix.parent)
    return fix


def _require_nothing_at(fix: Path, path: Path) -> None:
    is_empty_folder = path.is_dir() and fix.is_dir() and not any(fix.iterdir())
    if (fix.exists() or fix.is_symlink()) and not is_empty_folder:
        raise ValueError(
            f"fix must be a new path, got {shown(fix)}, which exists; nothing is replaced"
        )


def _require_writable(folder: Path) -> None:
    """Create a folder, and a file in it for a moment: before the images are read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"fix must be a place that can be written, got {shown(folder)}: {error.strerror}"
        ) from error


def _read(one: _Set) -> None:
    if one.source is not None:
        return
    try:
        require_regular_file(one.file, "annotation file")
        one.record = read_json(one.file, "annotation file")
    except FileNotFoundError as error:
        one.findings.add("file-missing", str(error))
    except (ValueError, OSError) as error:
        one.findings.add("file-unreadable", str(error))
    else:
        if one.record is None:
            one.findings.add("file-not-an-object", "the file must hold one JSON object, got null")


def _inspect_together(sets: list[_Set]) -> None:
    if len(sets) == len(SPLITS) and all(isinstance(one.record, dict) for one in sets):
        train, val = sets
        inspect_agreement(train.record, val.record, train.photos, val.photos, val.findings)


def _result(sets: list[_Set]) -> DataCheck:
    counts = Counter[str]()
    for one in sets:
        counts.update(one.findings.counts)

    def total(section: str) -> int:
        return sum(sum(1 for _ in entries_of(one.record, section)) for one in sets)

    return DataCheck(
        tuple(one.file for one in sets),
        total("images"),
        total("annotations"),
        tuple(finding for one in sets for finding in one.findings.kept()),
        {kind: counts[kind] for kind in KINDS if counts[kind]},
    )


def _write_repaired(check: DataCheck, sets: list[_Set], path: Path, fix: Path) -> DataCheck:
    """Write the repaired copy, and check it as it is written."""
    done = Counter[str]()
    repaired = []
    for one in sets:
        repair = _repair(one)
        done.update(repair.done)
        repaired.append(_Set(one.file, one.images, Findings(one.file), repair.record, one.photos))
        repaired[-1].inspect()
    _inspect_together(repaired)
    fix.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(fix) as temporary:  # a folder as a whole, too
        for one in repaired:
            place = temporary
            if path.is_dir():
                place = temporary / one.file.name
                temporary.mkdir(exist_ok=True)
            place.write_text(to_json(one.record, f"annotation file {one.file.name}"), "utf-8")
        if path.is_dir():
            for split in SPLITS:
                _link(temporary / split, path / split)
        _require_nothing_at(fix, path)  # it may have appeared during the check
    errors = (finding for finding in _result(repaired).findings if finding.level == "error")
    return replace(check, repairs=dict(done), fixed=fix, left=tuple(errors))


def _repair(one: _Set) -> Repair:
    try:
        return Repair(one.record, one.photos)
    except RecursionError as error:
        raise ValueError(
            f"annotation file {shown(one.file)} must not have lists nested so deeply; remove what "
            "is not COCO's, or leave out --fix"
        ) from error


def _link(link: Path, folder: Path) -> None:
    """Make a link to a folder of images, if there is one."""
    if not folder.is_dir():
        return
    try:
        link.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise OSError(
            f"{shown(folder)} could not be linked to ({error.strerror}); repair the annotation "
            "files one by one"
        ) from error
