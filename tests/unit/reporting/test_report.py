"""The HTML report is complete, self-contained, small and safe, and its metrics are COCO's."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import Element, Page, cells
from PIL import Image

from deformable_detr.evaluation.coco_eval import evaluate_results
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.reporting.findings import Findings
from deformable_detr.reporting.gallery import MAX_PICTURES, Photo
from deformable_detr.reporting.report import RunFacts, write_report
from deformable_detr.reporting.tables import MAX_CONFUSIONS

HOSTILE = "<b>&\"'</b><script>alert(1)</script>{{ 7 * 7 }}"
SIZE = (400, 300)  # (width, height) of every image
MAX_BYTES = 5_000_000

FACTS = RunFacts(
    name="a run",
    records=[
        {"kind": "start", "step": 0, "environment": {}},
        *(
            {"kind": "train", "step": step, "lr": 1e-4, "total": 9 / step, "loss_class": 1 / step}
            for step in range(10, 100, 10)
        ),
        {"kind": "evaluation", "step": 90, "AP": 0.25, "AP50": 0.5, "AP75": 0.125},
    ],
    recipe="deformable_detr_r50",
    deviations=["train.total_batch is 4, the recipe has 32"],
    config="train:\n  total_batch: 4\n",
    checkpoint={"file": "best.pth", "step": "90", "SHA-256": "0123"},
    environment={"torch": "2.10"},
)


def read_photo(image_id: int) -> Photo:
    noise = np.random.default_rng(image_id).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Photo(Image.fromarray(noise), f"photo {image_id}.jpg")


def simulate(
    folder: Path, *, classes: list[str], num_images: int, seed: int = 0
) -> tuple[DetectionTable, Path, Path]:
    """Return a table of simulated detections, and files of annotations and results."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        for _ in range(6):
            width, height = random.integers(10, 150, 2).tolist()
            x, y = random.integers(0, SIZE[0] - width), random.integers(0, SIZE[1] - height)
            box = [int(x), int(y), width, height]
            category = 10 * int(random.integers(1, len(classes) + 1))
            one = {"image_id": image_id, "category_id": category, "bbox": box}
            annotations.append({**one, "id": len(annotations) + 1, "area": width * height})
            if random.random() < 0.8:
                moved = [value + float(random.normal(0, 4)) for value in box[:2]]
                other = 10 * int(random.integers(1, len(classes) + 1))
                found = {**one, "bbox": [*moved, *box[2:]], "score": float(random.random())}
                if random.random() < 0.3:
                    found["category_id"] = other
                results.append(found)
    paths = folder / "annotations.json", folder / "results.json"
    categories = [{"id": 10 * n, "name": name} for n, name in enumerate(classes, start=1)]
    images = [
        {"id": image_id, "width": SIZE[0], "height": SIZE[1]}
        for image_id in range(1, num_images + 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps(results))
    table = DetectionTable.from_results(results, seen=[image["id"] for image in images])
    return table, *paths


def findings_of(table: DetectionTable, annotations: Path) -> Findings:
    return Findings.of(table, read_ground_truth(annotations))


def page_of(path: Path, facts: RunFacts = FACTS, findings: Findings | None = None) -> Element:
    write_report(path, facts, findings, read_photo)
    return Page(path.read_text(encoding="utf-8")).root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Element, Path, Path, Path]:
    """Return the page of a run with four classes, and annotations, results and page as files."""
    folder = tmp_path_factory.mktemp("small")
    table, annotations, results = simulate(folder, classes=["a", "b", "c", "d"], num_images=12)
    path = folder / "report.html"
    return (
        page_of(path, findings=findings_of(table, annotations)),
        annotations,
        results,
        path,
    )


def test_metrics_of_the_page_are_those_of_the_evaluation(
    small: tuple[Element, Path, Path, Path],
) -> None:
    page, annotations, results, _ = small
    metrics = evaluate_results(results, annotations)
    [statistics] = page.by_id("precision").all("table")
    assert {row[0]: row[1] for row in cells(statistics)[1:]} == {
        name: f"{value:.3f}" if value >= 0 else "-" for name, value in metrics.statistics.items()
    }
    [classes] = page.by_id("classes").all("table")
    shown = {row[0]: row[1] for row in cells(classes)[1:]}
    assert shown == {name: f"{value:.3f}" for name, value in metrics.class_ap.items()}
    values = sorted(metrics.class_ap.values(), reverse=True)
    assert [row[1] for row in cells(classes)[1:]] == [f"{value:.3f}" for value in values]


def test_tables_agree_with_each_other(small: tuple[Element, Path, Path, Path]) -> None:
    page, annotations, _, _ = small
    num_objects = len(json.loads(annotations.read_text())["annotations"])
    [classes] = page.by_id("classes").all("table")
    rows = [list(map(int, row[3:])) for row in cells(classes)[1:]]
    objects, found, false = (sum(column) for column in zip(*rows, strict=True))
    [matrix] = page.by_id("confusion").all("table")
    counts = np.array([list(map(int, row[1:])) for row in cells(matrix)[1:]])
    assert cells(matrix)[0] == ["", "a", "b", "c", "d", "background"]
    assert counts[:-1].sum() == objects == num_objects
    assert np.trace(counts) == found
    assert counts[:, :-1].sum() - np.trace(counts) == false > 0
    sizes, kinds = page.by_id("sizes").all("table")[0], page.by_id("false").all("table")[0]
    assert sum(int(row[1]) for row in cells(sizes)[1:]) >= num_objects  # limits count twice
    assert sum(int(row[1]) for row in cells(kinds)[1:]) == false
    assert f"{num_objects - found} objects match no detection" in page.by_id("missed").text


def test_page_is_self_contained(small: tuple[Element, Path, Path, Path]) -> None:
    page, _, _, path = small
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text(encoding="utf-8"))
    assert re.findall(r"https?:|//[a-z]|url\(|@import|<script|<link", text) == []
    addresses = [
        value
        for element in page.walk()
        for name, value in element.attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
    ]
    assert len(addresses) > 10
    for address in addresses:
        assert address is not None
        assert address.startswith(("#", "data:image/jpeg;base64,"))


def test_links_resolve_and_pictures_and_tables_are_accessible(
    small: tuple[Element, Path, Path, Path],
) -> None:
    page = small[0]
    ids = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    links, uses = ({str(one.attributes["href"]) for one in page.all(tag)} for tag in ("a", "use"))
    assert links == {f"#{section.attributes['id']}" for section in page.all("section")}
    assert links | uses == {f"#{name}" for name in ids}
    images = page.all("img")
    assert len(images) > MAX_PICTURES
    assert all(image.attributes.get("alt") for image in images)
    drawings = [one for one in page.all("svg") if one.attributes.get("role") == "img"]
    assert len(drawings) == 7  # AP, losses, rate; three of precision; sizes
    assert all(" from " in str(one.attributes["aria-label"]) for one in drawings[:6])
    for table in page.all("table"):
        assert all(
            heading.attributes["scope"] == "col" for heading in table.all("thead")[0].all("th")
        )
        assert all(row.all("th")[0].attributes["scope"] == "row" for row in table.all("tr")[1:])
    assert page.all("html")[0].attributes["lang"] == "en"


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    table, annotations, _ = simulate(tmp_path, classes=[HOSTILE, "b"], num_images=12)
    facts = replace(
        FACTS,
        name=HOSTILE,
        deviations=[HOSTILE],
        config=HOSTILE,
        checkpoint={**FACTS.checkpoint, HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
    )
    page = page_of(tmp_path / "report.html", facts, findings_of(table, annotations))
    assert page.all("script") == page.all("b") == []
    assert page.all("h1")[0].text == HOSTILE
    assert page.all("pre")[0].text == HOSTILE
    [classes] = page.by_id("classes").all("table")
    assert HOSTILE in [row[0] for row in cells(classes)]
    assert any(HOSTILE in str(image.attributes["alt"]) for image in page.all("img"))
    assert HOSTILE in page.by_id("precision").text  # the legend of a chart


def test_foreign_names_stay_in_their_place_on_the_page(tmp_path: Path) -> None:
    hebrew = "\u05db\u05dc\u05d1"
    names = {
        "L" * 3000: "L" * 77 + "...",
        "a\x1b[31m\u202eb\n\0": "a\\x1b[31m\\u202eb \\x00",
        hebrew: f"\u2068{hebrew}\u2069",
        "\ud800": "\\ud800",
        "": "(no name)",
        "\u732b": "\u732b",
    }
    table, annotations, _ = simulate(tmp_path, classes=list(names), num_images=12)
    facts = replace(FACTS, name="run\u202e\ud800", config="a: \x1b\nb: 1\n")
    path = tmp_path / "report.html"
    page = page_of(path, facts, findings_of(table, annotations))

    [classes] = page.by_id("classes").all("table")
    [matrix] = page.by_id("confusion").all("table")
    assert {row[0] for row in cells(classes)[1:]} == set(names.values())
    assert cells(matrix)[0] == ["", *names.values(), "background"]
    assert page.all("pre")[0].text == "a: \\x1b\nb: 1\n"
    text = path.read_text("utf-8")
    assert re.findall("[^\n\u2068\u2069\x20-\x7e\u05d0-\u05ea\u732b]", text) == []
    assert not re.search("L{81}", text)


def test_page_of_many_classes_and_records_is_small(tmp_path: Path) -> None:
    classes = [f"a class with a long name, number {number}" for number in range(1203)]
    table, annotations, _ = simulate(tmp_path, classes=classes, num_images=50)
    records = [
        {"kind": "train", "step": step, "lr": 1e-4, "total": 9 / step, "grad_norm": 1.0}
        for step in range(1, 20_000)
    ]
    path = tmp_path / "report.html"
    page = page_of(path, replace(FACTS, records=records), findings_of(table, annotations))
    assert path.stat().st_size < MAX_BYTES / 2
    [classes_table] = page.by_id("classes").all("table")
    assert len(cells(classes_table)) == 1 + 1203
    [confusions] = page.by_id("confusion").all("table")
    assert len(cells(confusions)) == 1 + MAX_CONFUSIONS
    counts = [int(row[2]) for row in cells(confusions)[1:]]
    assert counts == sorted(counts, reverse=True)
    assert len(page.all("img")) == 2 * MAX_PICTURES


def test_planted_errors_are_the_first_pictures(tmp_path: Path) -> None:
    table, annotations, results = simulate(tmp_path, classes=["a", "b"], num_images=12)
    content = json.loads(annotations.read_text())
    box = [20, 30, 300, 250]  # larger than any other
    content["annotations"].append(
        {"id": 1000, "image_id": 5, "category_id": 20, "bbox": box, "area": 300 * 250}
    )
    annotations.write_text(json.dumps(content))
    found = json.loads(results.read_text())
    planted = {"image_id": 7, "category_id": 10, "bbox": [390, 290, 9, 9], "score": 0.999}
    seen = table.seen.tolist()
    table = DetectionTable.from_results([*found, planted], seen=seen)
    page = page_of(tmp_path / "report.html", findings=findings_of(table, annotations))
    false, missed = (page.by_id(name).all("figure")[0] for name in ("false", "missed"))
    assert false.all("strong")[0].text == "a, score 1.00"
    assert "background" in false.text
    assert "photo 7.jpg" in false.text
    assert missed.all("strong")[0].text == "b, 300 x 250 px"
    assert "photo 5.jpg" in missed.text
    assert missed.all("img")[0].attributes["alt"].startswith("False negative: b, 300 x 250 px; ")


def test_page_without_detections_names_the_command(tmp_path: Path) -> None:
    page = page_of(tmp_path / "report.html")
    assert "deformable-detr report" in page.text
    sections = [section.attributes["id"] for section in page.all("section")]
    assert sections == ["training", "settings", "origin"]
    assert page.all("img") == []


@pytest.mark.parametrize("detected", [False, True])
def test_run_without_records_objects_or_detections_has_a_page(
    tmp_path: Path, detected: bool
) -> None:
    content = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}
    table = DetectionTable.from_results([result] * detected, seen=[1])
    findings = findings_of(table, tmp_path / "annotations.json")
    page = page_of(tmp_path / "report.html", replace(FACTS, records=[]), findings)
    assert "No records." in page.text
    [classes] = page.by_id("classes").all("table")
    assert cells(classes)[1] == ["a", "-", "-", "0", "0", "1" if detected else "0"]
    assert len(page.all("img")) == detected
