"""The configs against the options of their sources, which are written out independently."""

import re

import pytest
from helpers.models import CONFIGS

from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config
from deformable_detr.data.samplers import BatchPlan, MicroBatchSampler
from deformable_detr.workflows.recipe import FREE_SETTINGS, RECIPES, nearest_recipe

# Defaults of the official options, without masks and panoptic, under the names of this package.
OFFICIAL = {
    "train.optimizer.kind": "adamw",  # --sgd is off
    "train.optimizer.lr": 2e-4,  # lr
    "train.optimizer.lr_backbone": 2e-5,  # lr_backbone
    "train.optimizer.lr_sampling": 2e-5,  # lr * lr_linear_proj_mult 0.1
    "train.optimizer.weight_decay": 1e-4,  # weight_decay
    "train.total_batch": 32,  # batch_size 2 on 16 GPUs
    "train.micro_batch": 2,  # batch_size
    "train.epochs": 50,  # epochs
    "train.max_steps": None,  # no such option: epochs are whole
    "train.early_stopping": None,  # no such option
    "data.repeat_threshold": None,  # no such option
    "train.schedule.kind": "step",  # StepLR
    "train.schedule.drop_epochs": 40,  # lr_drop
    "train.schedule.warmup_steps": 0,  # no warm-up
    "train.clip_norm": 0.1,  # clip_max_norm
    "train.ema_decay": 0.0,  # no moving average
    "train.precision": "float32",  # no autocast
    "train.freeze": (),  # nothing but what the backbone freezes
    "train.seed": 42,  # seed
    "model.backbone.kind": "resnet",  # backbone resnet50
    "model.backbone.depth": 50,
    "model.backbone.dilation": False,  # dilation
    "model.backbone.norm": "frozen_batch_norm",
    "model.backbone.freeze_up_to_stride": 4,  # conv1 and layer1
    "model.backbone.weights": "imagenet1k_v1",
    "model.backbone.conv.kind": "plain",
    "model.backbone.in_channels": 3,
    "model.backbone.out_strides": (8, 16, 32),
    "model.position.kind": "sine",  # position_embedding
    "model.position.temperature": 10000.0,
    "model.position.offset": -0.5,
    "model.neck.kind": "channel_mapper",
    "model.neck.num_levels": 4,  # num_feature_levels
    "model.embed_dim": 256,  # hidden_dim
    "model.attention.num_heads": 8,  # nheads
    "model.encoder.num_layers": 6,  # enc_layers
    "model.encoder.ffn_dim": 1024,  # dim_feedforward
    "model.encoder.dropout": 0.1,  # dropout
    "model.encoder.num_points": 4,  # enc_n_points
    "model.decoder.num_layers": 6,  # dec_layers
    "model.decoder.ffn_dim": 1024,  # dim_feedforward
    "model.decoder.dropout": 0.1,  # dropout
    "model.decoder.num_points": 4,  # dec_n_points
    "model.decoder.box_refinement": False,  # with_box_refine
    "model.decoder.position": "query",  # the next three are of DINO
    "model.decoder.look_forward_twice": False,
    "model.decoder.share_heads": False,
    "model.queries.kind": "learned",  # two_stage is off
    "model.queries.num_queries": 300,  # num_queries
    "model.mimicking": None,  # no such part
    "model.denoising": None,  # of DINO
    "loss.class_loss.kind": "focal",
    "loss.class_cost": 2.0,  # set_cost_class
    "loss.l1_cost": 5.0,  # set_cost_bbox
    "loss.giou_cost": 2.0,  # set_cost_giou
    "loss.class_weight": 2.0,  # cls_loss_coef
    "loss.class_weights": (),  # no such option
    "loss.l1_weight": 5.0,  # bbox_loss_coef
    "loss.giou_weight": 2.0,  # giou_loss_coef
    "loss.focal_alpha": 0.25,  # focal_alpha
    "loss.focal_gamma": 2.0,  # fixed
    "loss.auxiliary": True,  # no_aux_loss is off
    "data.augmentation.kind": "coco",
    "data.augmentation.sizes": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "data.augmentation.max_size": 1333,
    "data.augmentation.pre_crop_sizes": (400, 500, 600),
    "data.augmentation.crop_sizes": (384, 600),
    "data.empty_boxes": "missed",  # pycocotools counts them as objects
    "data.repeats": 1,
    "data.eval_size": 800,
    "data.eval_max_size": 1333,
    "data.num_workers": 2,  # num_workers
    "data.cache_images": False,  # cache_mode
    "data.max_padded_pixels": None,  # no such option
}
TWO_STAGE = {
    "model.decoder.box_refinement": True,
    "model.queries.kind": "two_stage",
    "model.queries.content": "box",
    "model.queries.base_size": 0.05,
    "model.queries.ranking": "objectness",
    "model.queries.center_offset": "image",  # no such option
}
# Options of the official DINO_4scale.py and its training script, under the names of this package.
DINO_OFFICIAL = {
    **TWO_STAGE,
    "model.position.temperature": 20.0,  # pe_temperatureH, pe_temperatureW
    "model.position.offset": 0.0,
    "model.encoder.ffn_dim": 2048,  # dim_feedforward
    "model.encoder.dropout": 0.0,  # dropout
    "model.decoder.ffn_dim": 2048,
    "model.decoder.dropout": 0.0,
    "model.decoder.position": "reference",
    "model.decoder.look_forward_twice": True,  # use_detached_boxes_dec_out is off
    "model.decoder.share_heads": True,  # dec_pred_class_embed_share, dec_pred_bbox_embed_share
    "model.queries.num_queries": 900,  # num_queries
    "model.queries.content": "learned",  # embed_init_tgt
    "model.queries.ranking": "class",
    "model.denoising.num_queries": 100,  # dn_number
    "model.denoising.label_noise": 0.5,  # dn_label_noise_ratio
    "model.denoising.box_noise": 1.0,  # dn_box_noise_scale in the script
    "loss.class_weight": 1.0,  # cls_loss_coef
    "train.optimizer.lr": 1e-4,  # lr
    "train.optimizer.lr_backbone": 1e-5,  # lr_backbone
    "train.optimizer.lr_sampling": 1e-4,  # no group of its own
    "train.total_batch": 16,  # batch_size 2 on 8 GPUs
    "train.epochs": 12,
    "train.schedule.drop_epochs": 11,  # lr_drop
}
# mmdetection's `improved` config, detrex' better_hyper and 300 denoising queries: the recipe with
# AP 50.1 and 50.0; the class loss of Align-DETR and the moving average of detrex.
DINO = {
    **DINO_OFFICIAL,
    "model.backbone.freeze_up_to_stride": 0,
    "model.position.temperature": 10000.0,
    "model.position.offset": -0.5,
    "model.decoder.share_heads": False,
    "model.denoising.num_queries": 300,
    "loss.class_loss.kind": "quality",
    "loss.class_loss.score_power": 0.25,
    "loss.class_loss.iou_power": 0.75,
    "loss.class_loss.gamma": 2.0,
    "loss.class_loss.floor": 0.01,
    "train.optimizer.lr": 2e-4,
    "train.optimizer.lr_backbone": 2e-5,
    "train.optimizer.lr_sampling": 2e-5,
    "train.ema_decay": 0.9997,
}
CHANGES = {
    "deformable_detr_r50": {},
    "deformable_detr_r50_refine": {"model.decoder.box_refinement": True},
    "deformable_detr_r50_two_stage": TWO_STAGE,
    "deformable_detr_r50_single_scale": {
        "model.backbone.out_strides": (32,),
        "model.neck.num_levels": 1,
    },
    "deformable_detr_r50_single_scale_dc5": {
        "model.backbone.out_strides": (16,),
        "model.backbone.dilation": True,
        "model.neck.num_levels": 1,
    },
    "dino_r50": DINO,
    "dino_r50_24ep": {**DINO, "train.epochs": 24, "train.schedule.drop_epochs": 20},
    "dino_r50_5scale": {
        **DINO,
        "model.backbone.out_strides": (4, 8, 16, 32),
        "model.neck.num_levels": 5,
        "train.micro_batch": 1,
    },
    "dino_r50_official": DINO_OFFICIAL,
}
PUBLISHED_AP = {
    "deformable_detr_r50": "44.5",
    "deformable_detr_r50_refine": "46.2",
    "deformable_detr_r50_two_stage": "46.9",
    "deformable_detr_r50_single_scale": "39.4",
    "deformable_detr_r50_single_scale_dc5": "41.5",
    "dino_r50_official": "49.0",
}
BY_OTHERS = {"dino_r50": ["50.0", "50.1"], "dino_r50_24ep": ["50.4"], "dino_r50_5scale": ["49.4"]}
# Settings without an official option, or that do not belong to a recipe.
OURS = FREE_SETTINGS - OFFICIAL.keys()


def flat(content, prefix=""):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_a_config_equals_the_official_recipe(name):
    settings = dict(flat(load_config(name).model_dump()))
    expected = OFFICIAL | CHANGES[name]
    if any(key.startswith("model.denoising.") for key in expected):
        del expected["model.denoising"]
    assert {key: settings[key] for key in expected} == expected
    assert settings.keys() - expected.keys() == OURS


@pytest.mark.parametrize("name", PUBLISHED_AP)
def test_the_header_of_a_config_gives_the_published_ap(name):
    header = re.match(r"(#.*\n)+", (CONFIGS / f"{name}.yaml").read_text())[0]
    assert f"Published: AP {PUBLISHED_AP[name]} on val2017 (official repository)" in header
    assert re.findall(r"\bAP (\S+)", header) == [PUBLISHED_AP[name]]


@pytest.mark.parametrize("name", BY_OTHERS)
def test_the_header_of_a_config_says_who_published_the_ap(name):
    header = re.match(r"(#.*\n)+", (CONFIGS / f"{name}.yaml").read_text())[0]
    assert "Published by others: AP" in header
    assert "have no COCO result of our own yet" in header.replace("\n# ", " ")
    assert re.findall(r"\d\d\.\d", header) == BY_OTHERS[name]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", RECIPES)
def test_the_total_batch_is_the_same_for_any_number_of_processes(name, world_size):
    train = load_config(name).train
    total = 16 if name.startswith("dino") else 32
    if total < world_size * train.micro_batch:
        train = train.model_copy(update={"micro_batch": 1})
    samplers = [
        MicroBatchSampler(
            320,
            BatchPlan(
                total_batch=train.total_batch,
                micro_batch=train.micro_batch,
                rank=rank,
                world_size=world_size,
            ),
            seed=0,
        )
        for rank in range(world_size)
    ]
    steps = {sampler.steps_per_epoch for sampler in samplers}
    assert steps == {320 // total}
    for sampler in samplers:
        first_step = list(sampler)[: sampler.micro_batches_per_step]
        assert sum(map(len, first_step)) * world_size == total


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_does_not_deviate_from_itself(name):
    assert nearest_recipe(load_config(name)) == (name, [])


@pytest.mark.parametrize("name", RECIPES)
def test_settings_of_data_paths_speed_and_seed_are_not_deviations(name):
    overrides = [
        "match_official=true",
        "data.train.images=a",
        "data.num_workers=0",
        "model.attention.backend=reference",
        "train.micro_batch=8",
        "train.seed=1",
    ]
    assert nearest_recipe(load_config(name, overrides)) == (name, [])


CHANGED = {
    "train.total_batch": 8,
    "train.optimizer.lr": 1e-4,
    "train.optimizer.lr_backbone": 1e-4,
    "train.optimizer.lr_sampling": 1e-4,
    "train.optimizer.weight_decay": 0.0,
    "train.epochs": 5,
    "train.max_steps": 5,
    "data.repeat_threshold": 0.1,
    "model.backbone.in_channels": 4,
    "train.schedule.drop_epochs": 4,
    "train.schedule.warmup_steps": 4,
    "train.clip_norm": 1.0,
    "train.precision": "bfloat16",
    "train.freeze": ["backbone"],
    "train.ema_decay": 0.9,
    "loss.class_cost": 1.0,
    "loss.l1_cost": 1.0,
    "loss.giou_cost": 1.0,
    "loss.class_weight": 1.0,
    "loss.class_weights": [1.0, 2.0],
    "loss.l1_weight": 1.0,
    "loss.giou_weight": 1.0,
    "loss.focal_alpha": 0.5,
    "loss.focal_gamma": 1.0,
    "loss.auxiliary": False,
    "data.augmentation.sizes": [480],
    "data.augmentation.max_size": 800,
    "data.augmentation.pre_crop_sizes": [400],
    "data.augmentation.crop_sizes": [384, 500],
    "data.empty_boxes": "ignored",
    "data.repeats": 2,
    "data.eval_size": 600,
    "data.eval_max_size": 900,
    "data.max_padded_pixels": 1000000,
    "model.embed_dim": 128,
    "model.attention.num_heads": 4,
    "model.backbone.depth": 101,
    "model.backbone.freeze_up_to_stride": 0,
    "model.backbone.norm": "batch_norm",
    "model.backbone.weights": "none",
    "model.neck.num_levels": 5,
    "model.encoder.num_layers": 3,
    "model.encoder.ffn_dim": 512,
    "model.encoder.dropout": 0.0,
    "model.encoder.num_points": 2,
    "model.decoder.num_layers": 3,
    "model.decoder.ffn_dim": 512,
    "model.decoder.dropout": 0.0,
    "model.decoder.num_points": 2,
    "model.queries.num_queries": 100,
    "model.position.temperature": 20.0,
    "model.position.offset": 0.0,
}


def test_every_setting_of_the_recipe_is_changed_in_this_test():
    kinds = {key for key in OFFICIAL if key.endswith(".kind")}
    of_the_variant = {
        "model.backbone.dilation",
        "model.backbone.out_strides",
        "model.decoder.box_refinement",
        "model.decoder.position",  # these three need box refinement or two stages
        "model.decoder.look_forward_twice",
        "model.decoder.share_heads",
        "model.denoising",
        "model.mimicking",  # a section of several settings; see below
        "train.early_stopping",  # as is this
    }
    assert CHANGED.keys() == OFFICIAL.keys() - kinds - of_the_variant - FREE_SETTINGS


@pytest.mark.parametrize("key", CHANGED)
def test_each_deviation_is_one_line_with_both_values(key):
    name, lines = nearest_recipe(load_config("deformable_detr_r50", {key: CHANGED[key]}))
    assert name == "deformable_detr_r50"
    (line,) = lines
    assert line.startswith(f"{key} is ")
    assert ", the recipe has " in line


def test_values_are_written_as_in_yaml():
    overrides = ["train.optimizer.lr=1e-4", "model.backbone.weights=none", "loss.auxiliary=false"]
    _, lines = nearest_recipe(load_config("deformable_detr_r50_two_stage", overrides))
    assert lines == [
        "model.backbone.weights is none, the recipe has imagenet1k_v1",
        "loss.auxiliary is false, the recipe has true",
        "train.optimizer.lr is 0.0001, the recipe has 0.0002",
    ]


def test_another_kind_is_listed_with_its_own_settings():
    config = load_config("deformable_detr_r50", ["model.backbone={kind: timm, name: x}"])
    _, lines = nearest_recipe(config)
    assert "model.backbone.kind is timm, the recipe has resnet" in lines
    assert "model.backbone.name is x, the recipe has no such setting" in lines


def test_the_defaults_are_the_baseline_recipe():
    assert nearest_recipe(RunConfig()) == ("deformable_detr_r50", [])


def test_a_section_that_the_recipe_lacks_is_listed():
    config = load_config("deformable_detr_r50", ["model.mimicking={max_regions: 8}"])
    assert nearest_recipe(config) == (
        "deformable_detr_r50",
        [
            "model.mimicking.max_regions is 8, the recipe has no such setting",
            "model.mimicking.crop_size_px is 224, the recipe has no such setting",
        ],
    )
