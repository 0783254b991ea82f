"""Findings about a data set, counted by kind; of each kind the first ones are kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr.coco_json.rules import Problem
from deformable_detr.inspection.kinds import KINDS, Level
from deformable_detr.messages import in_brief, shown

KEPT = 1000  # findings of a kind and file, which bounds memory


@dataclass(frozen=True)
class Finding:
    """Finding about an entry, an image or a file.

    Attributes:
        kind: key of `KINDS`.
        file: annotation file.
        message: place and value in one line, escaped and cut.
        section: section of the entry; "" for the file or the folder as a whole.
        position: index of the entry in its section, or None.
        entry_id: `id` of the entry, of any type, or None.
        image: `file_name` of the image, or "".
        key: key of the entry, or "".
        value: value at the key in brief, or "".
    """

    kind: str
    file: str
    message: str
    section: str = ""
    position: int | None = None
    entry_id: Any = None
    image: str = ""
    key: str = ""
    value: str = ""

    @property
    def level(self) -> Level:
        """Level of the kind."""
        return KINDS[self.kind].level

    @property
    def meaning(self) -> str:
        """Meaning of the kind."""
        return KINDS[self.kind].meaning

    @property
    def remedy(self) -> str:
        """Remedy of the kind."""
        return KINDS[self.kind].remedy

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON, without NaN and infinity."""
        entry_id = self.entry_id
        if not isinstance(entry_id, int | None) or (entry_id or 0).bit_length() > 64:
            entry_id = in_brief(entry_id)
        return {
            "kind": self.kind,
            "level": self.level,
            "file": shown(Path(self.file)),
            "section": self.section,
            "position": self.position,
            "id": entry_id,
            "image": shown(self.image),
            "key": self.key,
            "value": self.value,
            "message": self.message,
            "remedy": self.remedy,
        }


class Findings:
    """Findings about one annotation file and its images.

    Args:
        file: the annotation file, or the folder of a data set of another format.
        places: file, and line or object in it, of each entry by section, which messages then name.

    Attributes:
        counts: number of findings by kind.
    """

    def __init__(self, file: Path, places: Mapping[str, Sequence[str]] | None = None) -> None:
        self.file = file
        self._places = places or {}
        self.counts: Counter[str] = Counter()
        self._kept: dict[str, list[Finding]] = {}

    def add(
        self,
        kind: str,
        message: str,
        *,
        section: str = "",
        position: int | None = None,
        entry: Mapping[str, Any] | None = None,
        image: str = "",
        key: str = "",
    ) -> None:
        """Count a finding, and keep it if it is one of the first of its kind."""
        assert kind in KINDS, kind
        self.counts[kind] += 1
        places = self._places.get(section)
        if places and position is not None:
            message = f"{places[position]}: {message.partition('): ')[2] or message}"
        kept = self._kept.setdefault(kind, [])
        if len(kept) < KEPT:
            entry = entry or {}
            value = in_brief(entry[key]) if key in entry else ""
            entry_id = entry.get("id")
            kept.append(
                Finding(
                    kind,
                    str(self.file),
                    message,
                    section,
                    position,
                    entry_id,
                    image,
                    key,
                    value,
                )
            )

    def add_problem(self, problem: Problem) -> None:
        """Count a breach of a rule."""
        entry = {"id": problem.entry_id, problem.key: problem.value}
        self.add(
            problem.kind,
            problem.message,
            section=problem.section,
            position=problem.position,
            entry=entry if problem.key != "id" else {"id": problem.value},
            image=problem.image,
            key=problem.key,
        )

    def kept(self) -> list[Finding]:
        """List the kept findings in the order of the table of kinds."""
        return [finding for kind in KINDS for finding in self._kept.get(kind, ())]
