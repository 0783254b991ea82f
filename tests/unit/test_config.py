import itertools
import json
from pathlib import Path

import pytest
import yaml
from helpers.models import CONFIGS, VARIANTS

from deformable_detr.config import ConfigError, RunConfig
from deformable_detr.config.flatten import config_changes
from deformable_detr.config.loading import (
    config_names,
    load_config,
    load_run_config,
    to_yaml,
    validate_config,
)


def load(tmp_path, text="", *overrides):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_config(path, overrides)


WRONG = {
    "unknown key": (
        "model: {encoder: {num_layer: 3}}",
        r"^x\.yaml\.model\.encoder\.num_layer: unknown key; did you mean 'num_layers'\?$",
    ),
    "unknown key of a kind": (
        "model: {backbone: {kind: timm, name: x, depth: 50}}",
        r"^x\.yaml\.model\.backbone\.depth: unknown key of this kind; it belongs to another kind$",
    ),
    "text for a number": (
        "model: {encoder: {num_layers: '3'}}",
        r"model\.encoder\.num_layers: must be a valid integer, got '3'",
    ),
    "truth for a number": (
        "model: {encoder: {num_layers: true}}",
        r"model\.encoder\.num_layers: must be a valid integer, got True",
    ),
    "out of range": (
        "train: {optimizer: {lr: -1}}",
        r"train\.optimizer\.lr: must be greater than 0, got -1",
    ),
    "unknown kind": (
        "model: {backbone: {kind: vgg}}",
        r"model\.backbone\.kind: must be one of 'resnet', 'mobilenet_v2', 'timm', got 'vgg'",
    ),
    "missing": ("model: {backbone: {kind: timm}}", r"model\.backbone\.name: must be given"),
    "two-stage without refinement": (
        "model: {queries: {kind: two_stage}}",
        r"model: decoder\.box_refinement must be true for two_stage queries, got false",
    ),
    "heads": (
        "model: {attention: {num_heads: 7}}",
        r"embed_dim must be divisible by attention\.num_heads, got 256 and 7",
    ),
    "levels": (
        "model: {neck: {num_levels: 2}}",
        r"neck\.num_levels must be at least the 3 backbone\.out_strides, got 2",
    ),
    "too many levels": ("model: {neck: {num_levels: 9}}", r"less than or equal to 8, got 9"),
    "width": ("model: {embed_dim: 100}", r"embed_dim: must be a multiple of 32, got 100"),
    "batch": (
        "train: {total_batch: 3}",
        r"train: total_batch must be a multiple of micro_batch, got 3 and 2",
    ),
    "range": (
        "data: {augmentation: {kind: zoom_crop, size: 256, scales: [2, 1]}}",
        r"data\.augmentation: scales must be \(low, high\), got \[2\.0, 1\.0\]",
    ),
    "not a mapping": ("- 3", r"^x\.yaml: must hold keys, got list"),
    "not YAML": ("a: [", r"^x\.yaml: must be YAML, got"),
    "a key twice": ("train: {}\ntrain: {}", "duplicate key 'train'"),
    "no such base": ("base: y.yaml", r"^x\.yaml\.base: must be a file beside it, got 'y\.yaml'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_in_a_file_names_the_path_of_the_key(tmp_path, name):
    text, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.optimizer.lr", r"override must be dotted\.key=value, got 'train\.optimizer\.lr'"),
        ("=3", "override must be dotted.key=value, got '=3'"),
        ("train.optimizer.lr=no", r"lr: must be a valid number, got 'no'"),
        ("train.optimizer.lr=.nan", r"lr: must be a valid number, got '\.nan'"),
        ("train.epoch=3", r"train\.epoch: unknown key; did you mean 'epochs'\?"),
        ("train.epochs=[", r"^override train\.epochs: must be a YAML value, got '\['"),
        ("train.epochs=0", r"^override train\.epochs: must be greater than 0, got 0$"),
        ("epochs=3", r"^override epochs: unknown key; did you mean train\.epochs\?$"),
        ("train.lr=1", r"^override train\.lr: unknown key; did you mean train\.optimizer\.lr\?$"),
        ("epoch=3", r"^override epoch: unknown key; did you mean train\.epochs\?$"),
        ("annotations=a", r"did you mean data\.train\.annotations or data\.val\.annotations\?$"),
        ("kind=timm", r"did you mean \S+kind, .* or one of \d+ more\?$"),
        (
            "data.train=x.json",
            r"^override data\.train: must be set by its keys, data\.train\.images, "
            r"data\.train\.annotations, got 'x\.json'$",
        ),
        ("model.backbone=timm", r"must be set by its keys, model\.backbone\.kind, got 'timm'$"),
        ("train=5", r"must be set by its keys, train\.\S+, .* and \d+ more, got 5$"),
        (
            "train.total_batch=3",
            r"^x\.yaml\.train, with override train\.total_batch: total_batch must be a multiple",
        ),
        ("train.seed=1" + "0" * 30, r"^override train\.seed: must be at most"),
        ("a\x1b\n=" + "x" * 50_000, r"^override a\\x1b\\n: unknown key$"),
        ("x" * 5_000_000, r"^override must be dotted\.key=value, got 'x{77}'\.\.\.$"),
    ],
)
def test_an_error_in_an_override_names_it(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, "", override)


OTHER_FILES = {
    "data of YOLO": (
        "data.yaml",
        "path: ../trees\ntrain: images/train\nval: images/val\nnames: {0: tree}",
        r"^data\.yaml: is a data file of YOLO, not a config; convert its labels to COCO JSON, and",
    ),
    "annotations as YAML": (
        "coco.yaml",
        '{"images": [], "annotations": [], "categories": []}',
        r"^coco\.yaml: is a COCO annotation file, not a config; give it as data\.train\.annot",
    ),
    "annotations": ("train.json", '{"images": []}', r"got \S+train\.json, a JSON file; data are"),
    "image": ("a.png", "\x89PNG\r\n\x1a\n", r"got \S+a\.png, a PNG image; data are given as"),
    "checkpoint": ("a.pth", "PK\x03\x04", r"a ZIP file, such as a checkpoint of PyTorch; data are"),
    "run folder": ("run/config.yaml", "", r"got \S+run, a run folder; give its config\.yaml$"),
    "folder": ("d/a.txt", "", r"got \S+d, a folder; data are given"),
    "Pascal VOC": ("d/a.xml", "", r"got \S+d, a folder of XML files, as Pascal VOC has; convert"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_file_in_place_of_a_config_is_recognized(tmp_path, name):
    place, text, message = OTHER_FILES[name]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="latin-1")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "last.pth").touch()
    with pytest.raises(ConfigError, match=message):
        load_config(file.parent if file.parent != tmp_path else file)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5_000_000, "a\x1b[31m", "\udcff", "no.yaml"])
def test_a_name_that_no_config_has(name):
    with pytest.raises(ConfigError, match=r"^config must be") as caught:
        load_config(name)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000


def test_keys_in_a_file_are_escaped_and_cut(tmp_path):
    keys = ["a\x1b[31m", "\u202eb", "c\nd", "x" * 1000, *map(str, range(1000))]
    text = json.dumps(dict.fromkeys(keys, 1), ensure_ascii=True)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    lines = str(caught.value).split("\n")
    assert len(lines) == 11
    assert all(line.isprintable() and len(line) < 200 for line in lines)
    assert lines[-1] == "x.yaml: 994 more problems like these"


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    text = "train: {optimizer: {lr: 1e-4}, epochs: 012}\nmodel: {backbone: {weights: no}}"
    config = load(tmp_path, text)
    assert config.train.optimizer.lr == 1e-4
    assert config.train.epochs == 12
    assert config.model.backbone.weights == "no"


def test_an_integer_is_accepted_for_a_float(tmp_path):
    assert load(tmp_path, "", "train.clip_norm=1").train.clip_norm == 1.0


def test_overrides_win_and_null_resets_a_value(tmp_path):
    config = load(tmp_path, "train: {max_steps: 5}", "train.max_steps=~", "train.epochs=3")
    assert config.train.max_steps is None
    assert config.train.epochs == 3


def test_kind_is_inherited_and_another_kind_drops_inherited_keys(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {backbone: {depth: 101, freeze_up_to_stride: 8}}")
    same = load(tmp_path, "base: base.yaml\nmodel: {backbone: {out_strides: [16, 32]}}")
    assert same.model.backbone.depth == 101
    assert same.model.backbone.freeze_up_to_stride == 8
    other = load(tmp_path, "base: base.yaml\nmodel: {backbone: {kind: mobilenet_v2}}")
    assert other.model.backbone.freeze_up_to_stride == 4


def test_bases_nest_three_deep_and_no_deeper(tmp_path):
    for index in range(5):
        text = f"base: {index - 1}.yaml\n" if index else ""
        (tmp_path / f"{index}.yaml").write_text(text + f"train: {{seed: {index}}}")
    assert load_config(tmp_path / "3.yaml").train.seed == 3
    with pytest.raises(ConfigError, match=r"4\.yaml\.base: must nest at most 3 deep"):
        load_config(tmp_path / "4.yaml")


def test_the_error_for_an_unknown_name_suggests_a_known_one():
    with pytest.raises(ConfigError, match=r"did you mean 'deformable_detr_r50'\?"):
        load_config("deformable_detr_r5")


def test_every_shipped_config_loads_and_survives_a_round_trip(tmp_path):
    names = config_names()
    assert set(VARIANTS.values()) <= set(names)
    for name in names:
        config = load_config(name)
        path = tmp_path / "again.yaml"
        path.write_text(to_yaml(config))
        assert load_config(path) == config
        assert validate_config(json.loads(config.model_dump_json()), source="json") == config


_TEXTS = (
    *("1e3", "1.e5", "08", "09.5e1", "+.5", "2017", "0o17", "1_000", "1:30", ".inf", "=", "~"),
    *("no", "on", "null", "true", "", " a ", "a: b", "a #b", "- a", "C:\\a", "'", '"', "{a}", "*a"),
    *("ä/日本", "😀", "a\nb", "a\tb", "\x1b[31m", "\u2028", "\ufeff"),
)


_NUMBERS = (1e-7, 0.1 + 0.2, 1e16, 1.5e22, 1.25e-30, 1e30)


@pytest.mark.parametrize("read", [load_config, load_run_config])
def test_every_text_and_number_in_a_config_survives_a_round_trip(tmp_path, read):
    path = tmp_path / "config.yaml"
    for text, number in zip(_TEXTS, itertools.cycle(_NUMBERS), strict=False):
        backbone = {"kind": "resnet", "weights": text}
        settings = {
            "model": {"backbone": backbone},
            "data": {"val": {"images": text}},
            "loss": {"focal_gamma": number},
        }
        config = validate_config(settings, source=text)
        path.write_text(to_yaml(config), encoding="utf-8")
        assert read(path) == config


def test_the_baseline_file_equals_the_defaults():
    config = load_config("deformable_detr_r50")
    assert config == RunConfig()


def test_a_config_cannot_be_changed():
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.train = None


def test_every_config_begins_with_a_comment():
    for path in CONFIGS.rglob("*.yaml"):
        assert path.read_text().startswith("# "), path
        assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_overrides_may_be_a_mapping_of_values():
    settings = {
        "match_official": True,
        "model.encoder.dropout": 0,
        "model.backbone.weights": "none",
        "train.max_steps": "5",
        "data.train.images": Path("photos"),
        "data.augmentation.sizes": (64,),
        "model": {"queries": {"num_queries": 20}},
    }
    config = load_config("deformable_detr_r50", settings)
    lines = [
        "match_official=true",
        "model.encoder.dropout=0",
        "model.backbone.weights=none",
        "train.max_steps=5",
        "data.train.images=photos",
        "data.augmentation.sizes=[64]",
        "model.queries.num_queries=20",
    ]
    assert config == load_config("deformable_detr_r50", lines)
    assert config.model.encoder.dropout == 0.0


def test_one_string_of_overrides_is_refused():
    message = "overrides must be a list of texts or a mapping, got 'match_o"
    with pytest.raises(ValueError, match=message):
        load_config("deformable_detr_r50", "match_official=true")


def test_a_renamed_setting_is_refused_with_its_new_name_and_value(tmp_path):
    (tmp_path / "old.yaml").write_text("compat: official")
    new = "compat: has been renamed; write match_official: "
    with pytest.raises(ConfigError, match=rf"^old\.yaml\.{new}true$"):
        load_config(tmp_path / "old.yaml")
    with pytest.raises(ConfigError, match=f"{new}false$"):
        load_config("deformable_detr_r50", ["compat=none"])


def test_the_config_of_a_run_folder_of_another_version_is_read(tmp_path):
    written = {"compat": "official", "gone": 1, "train": {"epochs": 3}}
    (tmp_path / "config.yaml").write_text(json.dumps(written))
    config = load_run_config(tmp_path / "config.yaml", ["train.seed=5"])
    assert (config.match_official, config.train.epochs, config.train.seed) == (True, 3, 5)
    with pytest.raises(ConfigError, match=r"^override typo: unknown key"):
        load_run_config(tmp_path / "config.yaml", ["typo=1"])


def saved_config():
    return json.loads(RunConfig().model_dump_json())


def test_a_saved_config_without_a_newer_setting_gets_its_default():
    content = saved_config()
    del content["match_official"]
    assert validate_config(content, source="checkpoint x") == RunConfig()


def test_unknown_settings_of_a_saved_config_are_ignored_with_one_warning(caplog):
    content = saved_config()
    content["gone"] = {"a": 1}
    content["model"]["backbone"]["old"] = True
    config = validate_config(content, source="checkpoint x", ignore_unknown=True)
    assert config == RunConfig()
    (record,) = caplog.records
    names = "model.backbone.old, gone"
    assert record.getMessage() == f"checkpoint x: unknown settings are ignored: {names}"


def test_known_settings_of_a_saved_config_are_validated():
    content = saved_config()
    content["gone"] = 1
    content["train"]["epochs"] = 0
    with pytest.raises(ConfigError, match=r"^checkpoint x\.train\.epochs: must be greater than 0"):
        validate_config(content, source="checkpoint x", ignore_unknown=True)


def test_unknown_settings_in_a_config_written_by_a_user_are_refused():
    content = saved_config()
    content["gone"] = 1
    with pytest.raises(ConfigError, match=r"^x\.gone: unknown key"):
        validate_config(content, source="x")


def test_changed_settings_are_listed_by_path() -> None:
    old = {"train": {"lr": 1e-4, "epochs": 50}, "seed": 1}
    new = {"train": {"lr": 2e-4, "epochs": 50}, "ema": 0.9, "seed": 1}
    assert config_changes(old, new) == ["ema: None -> 0.9", "train.lr: 0.0001 -> 0.0002"]
    assert config_changes(old, old) == []
