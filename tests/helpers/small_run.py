"""Settings that make a run of `deformable_detr_r50` small enough for a test."""

from helpers.coco_files import CocoFiles

SMALL_RUN = (
    "model.backbone.depth=18",
    "model.backbone.weights=none",
    "model.backbone.out_strides=[16]",
    "model.neck.num_levels=1",
    "model.embed_dim=64",
    "model.attention.num_heads=2",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=1",
    "model.queries.num_queries=5",
    "data.augmentation.sizes=[48]",
    "data.augmentation.max_size=128",
    "data.augmentation.pre_crop_sizes=[64]",
    "data.augmentation.crop_sizes=[32, 48]",
    "data.eval_size=48",
    "data.num_workers=0",
    "train.total_batch=4",
    "train.micro_batch=2",
    "train.log_every=1",
)


def data_settings(train: CocoFiles, val: CocoFiles) -> list[str]:
    return [
        f"data.train.images={train.images}",
        f"data.train.annotations={train.annotations}",
        f"data.val.images={val.images}",
        f"data.val.annotations={val.annotations}",
    ]
