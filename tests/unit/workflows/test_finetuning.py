"""`train --finetune-from`: initial weights of a run, its log, and the recorded origin."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.foreign_files import small_config, write_foreign
from helpers.small_run import SMALL_RUN, data_settings
from helpers.tiny_checkpoint import CONFIG, LABEL_SPACE, write_checkpoint

from deformable_detr.config.loading import load_config, to_yaml, validate_config
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.workflows.finetuning import FinetuneSource
from deformable_detr.workflows.training_parts import build_run_model

NEW_CATEGORIES = {2: "Tree", 5: "cat", 6: "house"}  # the old ones: cat, dog, tree
OLD_ROWS = {0: 2, 1: 0}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Config file of the tiny checkpoint."""
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(CONFIG))
    return path


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    files = write_coco_set(tmp_path / "data", num_images=4, categories=NEW_CATEGORIES)
    run = [setting for setting in SMALL_RUN if not setting.startswith("model.")]
    return [*data_settings(files, files), *run, "train.max_steps=1"]


def train(run: CommandLine, config: Path, folder: Path, *arguments: str | Path) -> tuple[int, str]:
    outcome = run(
        *("train", "--config", config, "--run-dir", folder, "--device", "cpu"), *arguments
    )
    return outcome.code, outcome.err


def test_a_run_starts_with_the_weights_of_the_file_and_logs_the_transfer(
    run: CommandLine,
    checkpoint: Path,
    config: Path,
    data: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    # With a tiny learning rate the weights stay as at step 0.
    rates = "train.optimizer={lr: 1e-30, lr_backbone: 1e-30, lr_sampling: 1e-30, weight_decay: 0}"

    with caplog.at_level(logging.INFO):
        code, err = train(run, config, folder, "--finetune-from", checkpoint, *data, rates)

    assert code == 0, err
    old, new = load_checkpoint(checkpoint), load_checkpoint(folder / "last.pth")
    name = "decoder.class_heads.0"
    for row, old_row in OLD_ROWS.items():
        assert new.model[f"{name}.weight"][row].equal(old.model[f"{name}.weight"][old_row])
        assert new.model[f"{name}.bias"][row].equal(old.model[f"{name}.bias"][old_row])
    for key, value in new.model.items():
        if not key.startswith(name):
            torch.testing.assert_close(value, old.model[key], rtol=0, atol=1e-20)
    assert new.origin == f"fine-tuned from {checkpoint} (native)"
    lines = [" ".join(line.split()) for line in caplog.messages]
    assert any(line.startswith("weights fine-tuned from") for line in lines)
    assert f"kept {len(new.model)} of the model's {len(new.model)} tensors" in lines
    assert "reinitialized 2: decoder.class_heads.* x 2 (1 of 3 rows)" in lines
    assert "classes 2 kept: Tree, cat" in lines
    assert "classes 1 from scratch: house" in lines
    assert "classes 1 dropped: dog" in lines


def test_a_run_starts_from_a_file_of_the_official_code(
    run: CommandLine, data: list[str], tmp_path: Path
) -> None:
    """The file has 91 class rows for COCO's 80 classes; of the new classes only cat is in COCO."""
    source = write_foreign(tmp_path, "official", "two_stage")
    config, folder = tmp_path / "official.yaml", tmp_path / "run"
    config.write_text(to_yaml(small_config("two_stage")))
    rates = "train.optimizer={lr: 1e-30, lr_backbone: 1e-30, lr_sampling: 1e-30, weight_decay: 0}"

    code, err = train(run, config, folder, "--finetune-from", source, *data, rates)

    assert code == 0, err
    official = torch.load(source, weights_only=True)["model"]
    new = load_checkpoint(folder / "last.pth")
    assert new.origin == f"fine-tuned from {source} (official)"
    cat = new.label_space.names.index("cat")
    own = new.model["decoder.class_heads.0.weight"]
    assert own[cat].equal(
        official["class_embed.0.weight"][COCO.category_ids[COCO.names.index("cat")]]
    )
    objectness = new.model["queries.class_head.weight"]
    assert objectness[0].equal(official["class_embed.3.weight"][0])


def test_a_fine_tuned_run_resumes_without_any_other_file(
    run: CommandLine, config: Path, data: list[str], tmp_path: Path
) -> None:
    source, folder = tmp_path / "source.pth", tmp_path / "run"
    write_checkpoint(source)
    train(run, config, folder, "--finetune-from", source, *data)
    source.unlink()
    no_backbone = f"model.backbone.weights={source}"

    code, err = train(run, config, folder, "--resume", *data, no_backbone, "train.max_steps=2")

    assert code == 0, err
    last = load_checkpoint(folder / "last.pth")
    assert (last.step, last.origin) == (2, f"fine-tuned from {source} (native)")


def test_a_run_starts_with_the_moving_average_of_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    average = {name: value + 1 for name, value in checkpoint.model.items()}
    save_checkpoint(tmp_path / "b.pth", replace(checkpoint, ema=average))

    read = FinetuneSource.read(tmp_path / "b.pth")

    assert all(read.state_dict[name].equal(value) for name, value in average.items())
    assert read.label_space == LABEL_SPACE


def test_backbone_weights_are_loaded_only_if_the_file_has_another_backbone(
    checkpoint: Path,
) -> None:
    source = FinetuneSource.read(checkpoint)

    def build(depth: int) -> None:
        content = CONFIG.model_dump(mode="json")
        content["model"]["backbone"] |= {"weights": "none.pth", "depth": depth}
        config = validate_config(content, source="test")
        build_run_model(config, LABEL_SPACE, source, resume=False)

    build(18)
    with pytest.raises(FileNotFoundError, match=r"none\.pth must exist, found nothing there"):
        build(34)


def test_fine_tuning_and_resuming_exclude_each_other(
    run: CommandLine, checkpoint: Path, config: Path, tmp_path: Path
) -> None:
    message = run.fails(
        *("train", "--config", config, "--run-dir", tmp_path / "run", "--device", "cpu"),
        *("--finetune-from", checkpoint, "--resume"),
    )

    assert message.startswith("--finetune-from and --resume must not both be given")


def test_overwrite_does_not_delete_the_file_to_fine_tune_from(
    run: CommandLine, config: Path, data: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_checkpoint(folder / "best.pth")

    code, err = train(
        run, config, folder, *data, "--finetune-from", folder / "best.pth", "--overwrite"
    )

    assert code == 2
    assert "--finetune-from must be outside the run folder that --overwrite deletes" in err
    assert (folder / "best.pth").is_file()


def test_a_missing_file_is_named_before_anything_is_written(
    run: CommandLine, config: Path, data: list[str], tmp_path: Path
) -> None:
    code, err = train(
        run, config, tmp_path / "run", "--finetune-from", tmp_path / "none.pth", *data
    )

    assert code == 2
    assert f"checkpoint {tmp_path / 'none.pth'} does not exist" in err
    assert not (tmp_path / "run").exists()


def test_a_file_of_a_very_different_model_is_refused(
    run: CommandLine, checkpoint: Path, config: Path, data: list[str], tmp_path: Path
) -> None:
    code, err = train(
        run, config, tmp_path / "run", "--finetune-from", checkpoint, *data, "model.embed_dim=128"
    )

    assert code == 2
    assert f"{checkpoint} must match at least half of the model's" in err
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]
    RunFolder(tmp_path / "run").check()  # a new run may still start in the folder


def test_a_converted_file_is_not_resumed(
    run: CommandLine, config: Path, data: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_checkpoint(folder / "last.pth")  # holds weights only
    before = (folder / "last.pth").read_bytes()

    code, err = train(run, config, folder, "--resume", *data)

    assert code == 2
    assert "must hold the state of an optimizer to be resumed, got weights only" in err
    assert "--finetune-from" in err
    assert (folder / "last.pth").read_bytes() == before


def test_tensors_not_in_the_file_are_initialized_as_without_fine_tuning(checkpoint: Path) -> None:
    config = load_config("deformable_detr_r50", [*SMALL_RUN, "model.neck.num_levels=2"])
    source = FinetuneSource.read(checkpoint)
    plain, _ = build_run_model(config, LABEL_SPACE, None, resume=False)
    tuned, report = build_run_model(config, LABEL_SPACE, source, resume=False)
    assert report is not None
    expected, got = plain.state_dict(), tuned.state_dict()
    new_names = [name for name, reason in report.reinitialized.items() if "rows" not in reason]
    assert new_names
    assert all(got[name].equal(expected[name]) for name in new_names)
    assert any(not torch.equal(got[name], expected[name]) for name in report.kept)
