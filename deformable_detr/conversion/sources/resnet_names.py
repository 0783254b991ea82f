"""ResNet part of the tables: our backbone has torchvision's names, like most sources."""

from deformable_detr.conversion.layout import FROZEN_NORM, Each, NameBlock, NameRow, When

_STAGES: tuple[Each, ...] = ("stage1", "stage2", "stage3", "stage4")
_CONV = ("weight",)


def torchvision_names(theirs: str) -> tuple[NameBlock, ...]:
    """Return names as in torchvision, with the prefix `theirs`."""
    rows = [
        NameRow(
            f"{kind}{number}",
            f"{kind}{number}",
            leaves,
            when="bottleneck" if number == 3 else "always",
        )
        for number in (1, 2, 3)
        for kind, leaves in (("conv", _CONV), ("bn", FROZEN_NORM))
    ]
    return (
        NameBlock(
            theirs,
            "backbone.body",
            (NameRow("conv1", "conv1", _CONV), NameRow("bn1", "bn1", FROZEN_NORM)),
        ),
        *(
            NameBlock(
                f"{theirs}.layer{stage}.{{i}}",
                f"backbone.body.layer{stage}.{{i}}",
                (*rows, *_shortcut_rows(stage, "downsample.0", "downsample.1")),
                each,
            )
            for stage, each in enumerate(_STAGES, start=1)
        ),
    )


def detectron2_names(theirs: str) -> tuple[NameBlock, ...]:
    """Return names as in detectron2, with the prefix `theirs`: norms are part of convolutions."""
    rows = [
        NameRow(
            f"conv{number}{norm}",
            f"{kind}{number}",
            leaves,
            when="bottleneck" if number == 3 else "always",
        )
        for number in (1, 2, 3)
        for kind, norm, leaves in (("conv", "", _CONV), ("bn", ".norm", FROZEN_NORM))
    ]
    return (
        NameBlock(
            f"{theirs}.stem",
            "backbone.body",
            (NameRow("conv1", "conv1", _CONV), NameRow("conv1.norm", "bn1", FROZEN_NORM)),
        ),
        *(
            NameBlock(
                f"{theirs}.res{stage + 1}.{{i}}",
                f"backbone.body.layer{stage}.{{i}}",
                (*_shortcut_rows(stage, "shortcut", "shortcut.norm"), *rows),
                each,
            )
            for stage, each in enumerate(_STAGES, start=1)
        ),
    )


def _shortcut_rows(stage: int, convolution: str, norm: str) -> tuple[NameRow, NameRow]:
    """Return the projection of a stage's first shortcut; basic blocks of stage 1 have none."""
    when: When = "bottleneck" if stage == 1 else "always"
    return (
        NameRow(convolution, "downsample.0", _CONV, when=when, first_only=True),
        NameRow(norm, "downsample.1", FROZEN_NORM, when=when, first_only=True),
    )
