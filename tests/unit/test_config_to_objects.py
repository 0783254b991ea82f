"""Every setting reaches the object that it belongs to: one row per setting.

A row changes one setting, and looks at what is built from the config with and without the change.
The settings are found in the config models: a new one without a row fails.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.config_fields import choose_kinds, config_fields, dotted
from helpers.model_rows import MODEL_ROWS
from helpers.run_rows import RUN_ROWS
from helpers.setting_rows import FOLDER, SMALL, AsGiven

from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config

ROWS = MODEL_ROWS | RUN_ROWS


@cache
def loaded(settings: tuple[str, ...]) -> RunConfig:
    return load_config("deformable_detr_r50", settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the sets train, val and other, of the same files; other has annotations of three."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("train", "val", "other"):
        files = write_coco_set(folder / name, num_images=4, size=(32, 32))
        if name == "val":  # one box without area
            content = files.read()
            content["annotations"][0]["bbox"][2] = 0
            files.write(content)
    fewer = files.read()
    del fewer["images"][3]
    fewer["annotations"] = [one for one in fewer["annotations"] if one["image_id"] < 4]
    files.write(fewer)
    return folder


def test_every_setting_has_a_row() -> None:
    assert ROWS.keys() == config_fields().keys()


@pytest.mark.parametrize("key", ROWS)
def test_a_setting_reaches_the_object_it_belongs_to(key: str, folder: Path) -> None:
    row = ROWS[key]
    kind = choose_kinds(key)
    is_kind = key.endswith(".kind")
    settings = [*SMALL, *row.given, *(() if is_kind else kind)]
    located = [one.replace(str(FOLDER), str(folder)) for one in settings]
    before = loaded(tuple(located))
    change = json.loads(
        json.dumps({dotted(key): row.value}, default=str).replace(str(FOLDER), str(folder))
    )
    after = load_config(before, kind if is_kind else change)
    assert after != before
    shown = row.built(after)
    assert shown == (row.value if row.shown is AsGiven else row.shown)
    assert shown != row.built(before)
