"""Train two steps and predict with many timm models, or see them refused when they are built.

Each model, without pre-trained weights, gets a small transformer, takes two training steps with
images of odd sizes and detects in two more. Its end is good if all of that works and every trained
parameter gets a gradient, or if building it ends with the error that names models that work. Any
other end makes the exit code 1. The table is Markdown. Takes about three minutes.

Usage: .venv/bin/python scripts/check_backbones.py [--models NAME ...]
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import timm
import torch
from torch import Tensor

from deformable_detr.builders import build_criterion, build_model, build_optimizer
from deformable_detr.config.loading import load_config
from deformable_detr.data.collate import Batch
from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.engine.schedule import StepSchedule
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ImageBatch, Size, Target

LABELS = LabelSpace((1, 2, 3), ("a", "b", "c"))
SMALL = {
    "model.embed_dim": 64,
    "model.attention.num_heads": 4,
    "model.encoder.num_layers": 1,
    "model.encoder.ffn_dim": 64,
    "model.decoder.num_layers": 2,
    "model.decoder.ffn_dim": 64,
    "model.queries.num_queries": 10,
}
# (height, width) of the images of two steps, and of those to predict.
TRAIN_SIZES: tuple[tuple[Size, Size], ...] = (((97, 75), (61, 83)), ((131, 59), (79, 101)))
PREDICT_SIZES: tuple[Size, ...] = ((87, 121), (53, 67))
REFUSAL = "models that work are"


@dataclass(frozen=True)
class Case:
    """Model, and the settings that differ from the defaults.

    Attributes:
        family: the architecture.
        name: timm's name.
        out_strides: `model.backbone.out_strides`.
        freeze: `model.backbone.freeze_up_to_stride`.
        biases: standard deviation of the noise added to the backbone's parameters of one
            dimension, which stands in for training. FocalNet needs it: as initialized, its norms
            follow one another on features that are all zero where images are padded, and
            multiply the gradient until it overflows.
    """

    family: str
    name: str
    out_strides: tuple[int, ...] = (8, 16, 32)
    freeze: int = 4
    biases: float = 0.0


CASES = (
    Case("ResNet-D", "resnet18d"),
    Case("ResNetV2", "resnetv2_18"),
    Case("ResNeSt", "resnest14d"),
    Case("SKNet", "skresnet18"),
    Case("SENet", "legacy_seresnet18"),
    Case("Res2Net", "res2net50_48w_2s"),
    Case("RegNet", "regnety_002"),
    Case("RegNet", "regnetx_002"),
    Case("EfficientNet", "tf_efficientnet_lite0"),
    Case("EfficientNet", "mobilenetv2_035"),
    Case("MobileNetV3", "mobilenetv3_small_050"),
    Case("MobileNetV4", "mobilenetv4_conv_small_035"),
    Case("GhostNet", "ghostnet_050"),
    Case("ReXNet", "rexnet_100"),
    Case("RepVGG", "repvgg_a0"),
    Case("RepViT", "repvit_m0_9"),
    Case("FastViT", "fastvit_t8"),
    Case("MobileViT", "mobilevit_xxs"),
    Case("NFNet", "nfnet_l0"),
    Case("PVTv2", "pvt_v2_b0"),
    Case("TinyViT", "tiny_vit_5m_224"),
    Case("EfficientViT", "efficientvit_b0"),
    Case("XCiT", "xcit_nano_12_p16_224", (16,)),
    Case("ConvNeXt", "convnext_atto"),
    Case("ConvNeXt", "convnextv2_atto"),
    Case("EdgeNeXt", "edgenext_xx_small"),
    Case("InceptionNeXt", "inception_next_atto"),
    Case("MambaOut", "mambaout_femto"),
    Case("FocalNet", "focalnet_tiny_srf", biases=0.02),
    Case("VGG", "vgg11_bn"),
    Case("DenseNet", "densenet121"),
    Case("CSPDarknet", "cs3darknet_focus_s"),
    Case("VoVNet", "ese_vovnet19b_slim"),
    Case("DLA", "dla46_c"),
    Case("HRNet", "hrnet_w18_small", freeze=0),
    Case("Xception", "xception41"),
    Case("Swin", "swin_tiny_patch4_window7_224"),
    Case("SwinV2", "swinv2_tiny_window8_256"),
    Case("SwinV2-CR", "swinv2_cr_tiny_224"),
    Case("Twins", "twins_svt_small", freeze=0),
    Case("ViT", "vit_tiny_patch16_224", (16,)),
    Case("ViT", "eva02_tiny_patch14_224", (14,)),
    Case("ViTamin", "vitamin_small_224", (16,)),
    Case("Hiera (SAM 2)", "sam2_hiera_tiny"),
    Case("MaxViT", "maxvit_rmlp_pico_rw_256"),
    Case("CoAtNet", "coatnet_nano_rw_224"),
    Case("Hiera", "hiera_tiny_224"),
    Case("BEiT", "beit_base_patch16_224", (16,)),
    Case("EfficientFormer", "efficientformer_l1"),
    Case("EfficientFormerV2", "efficientformerv2_s0"),
    Case("LeViT", "levit_128s", (16, 32)),
    Case("GCViT", "gcvit_xxtiny"),
    Case("PiT", "pit_ti_224"),
    Case("CrossViT", "crossvit_tiny_240", (12,)),
    Case("BoTNet", "botnet26t_256"),
    Case("Inception", "inception_v3"),
)


@dataclass(frozen=True)
class Ending:
    """End of a model's check.

    Attributes:
        is_good: whether it works, or was refused as it should be.
        text: what happened.
        build_s: CPU seconds to build the detector.
    """

    is_good: bool
    text: str
    build_s: float


def check(case: Case) -> Ending:
    """Build, train and predict; no error of the model gets out."""
    torch.manual_seed(0)
    begin = time.process_time()
    try:
        model = _build(case)
    except Exception as error:  # whatever it is, the table shall name it
        seconds = time.process_time() - begin
        is_refused = isinstance(error, ValueError) and REFUSAL in str(error)
        reason = str(error).partition(f"got {case.name}: ")[2].partition(f"; {REFUSAL}")[0]
        text = f"refused: {reason}" if is_refused else f"{type(error).__name__}: {error}"
        return Ending(is_refused, text, seconds)
    seconds = time.process_time() - begin
    try:
        without_gradient = _train(model, case)
        _predict(model)
    except Exception as error:  # as above
        return Ending(False, f"{type(error).__name__}: {error}", seconds)
    if without_gradient:
        return Ending(False, f"no gradient: {', '.join(without_gradient)}", seconds)
    multiple = model.backbone.multiple
    padded = f", images padded to multiples of {multiple}" if multiple > 1 else ""
    return Ending(True, f"trains and predicts{padded}", seconds)


def _settings(case: Case) -> dict[str, object]:
    backbone = {
        "kind": "timm",
        "name": case.name,
        "weights": "none",
        "out_strides": list(case.out_strides),
        "freeze_up_to_stride": case.freeze,
    }
    return {**SMALL, "model.backbone": backbone}


def _build(case: Case) -> DeformableDETR:
    config = load_config("deformable_detr_r50", _settings(case))
    model = build_model(config, num_classes=len(LABELS.names))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.ndim == 1 and case.biases:
                parameter.add_(case.biases * torch.randn_like(parameter))
    return model


def _train(model: DeformableDETR, case: Case) -> list[str]:
    """Take the steps, and return the trained parameters that got no gradient."""
    config = load_config("deformable_detr_r50", _settings(case))
    state = TrainState(
        model,
        build_optimizer(config.train.optimizer, model),
        StepSchedule(drop_steps=1_000_000),
        label_space=LABELS,
        config={},
    )
    criterion = build_criterion(config)
    model.train()
    for sizes in TRAIN_SIZES:
        train_step(state, [_batch(sizes)], criterion, seed=0, max_grad_norm=0.1)
    trained = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return [name for name, parameter in trained if parameter.grad is None]


def _batch(sizes: Sequence[Size]) -> Batch:
    images = ImageBatch.from_images([torch.randn(3, *size) for size in sizes])
    target = Target(torch.tensor([[0.5, 0.5, 0.4, 0.3]]), torch.tensor([1]))
    return Batch(images, (target,) * len(sizes))


def _predict(model: DeformableDETR) -> None:
    device = torch.device("cpu")
    detector = Detector(model, LABELS, transform=Resize(short_side=67, max_size=121), device=device)
    images: list[Tensor] = [torch.rand(3, *size) for size in PREDICT_SIZES]
    for detections in detector.predict(images, threshold=0.0):
        if not detections.boxes_xyxy.isfinite().all() or len(detections.scores) == 0:
            raise ValueError(f"detections must be finite and at least one, got {detections}")


def check_all(cases: Iterable[Case]) -> Iterator[tuple[Case, Ending]]:
    """Check model after model."""
    for case in cases:
        yield case, check(case)


def _line(case: Case, ending: Ending) -> str:
    verdict = "" if ending.is_good else "**wrong** "
    text = " ".join(ending.text.split()).replace("|", "/")
    return f"| {case.family} | `{case.name}` | {verdict}{text} | {ending.build_s:.1f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="only these of the list")
    wanted = parser.parse_args(arguments).models
    if unknown := sorted(set(wanted or ()) - {case.name for case in CASES}):
        parser.error(f"--models must be of the list in {__file__}, got {', '.join(unknown)}")
    cases = [case for case in CASES if wanted is None or case.name in wanted]
    print(f"timm {timm.__version__}, PyTorch {torch.__version__}, {platform.machine()} CPU\n")
    print("| family | model | end | build, CPU s |\n|---|---|---|---|")
    endings = []
    for case, ending in check_all(cases):
        print(_line(case, ending), flush=True)
        endings.append(ending)
    wrong = sum(not ending.is_good for ending in endings)
    print(
        f"\n{len(endings)} models of {len({case.family for case in cases})} families, {wrong} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
