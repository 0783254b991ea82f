"""The constants of the preset, each with its reason; the place to change what is chosen.

Sides and sizes are in pixels. Rates hold for `BATCH` images per step.
"""

from typing import Literal

Device = Literal["cpu", "gpu"]

# Sizes of objects as the model sees them. The finest level has a cell per 8 pixels: the median
# object covers four by four cells, and a small one (quantile 0.1) more than one.
MEDIAN_PX = 32.0
SMALL_PX = 12.0
# Pixels of an image, in proportion to which the time of a step grows. On a CPU it bounds the time:
# in 200 s, one run each of nuclei had AP 0.20 at 320, 0.14 at 384 and 0.13 at 448 pixels, with
# fewer steps and, at 384, half of the rates too.
MOST_PIXELS: dict[Device, int] = {"cpu": 320 * 340, "gpu": 800 * 1066}
LEAST_SIDE = 256  # below, the coarsest level has too few cells
MOST_ENLARGED = 2.0  # more shows no detail that the image does not have
EVAL_PIXELS_FACTOR = 4  # an image is evaluated without a backward pass
SIDE_STEP = 32  # sides are multiples of the coarsest stride

# Whole images: sizes relative to the chosen one, and crops of half of the images, which enlarge.
TRAIN_SIZES = (0.9, 1.0, 1.1)
PRE_CROP_SIZES = (1.0, 1.25, 1.5)
CROP_SIZES = (0.7, 1.0)
LONG_SIDE_ROOM = 1.25  # longest side relative to that of an ordinary image
# Crops: if objects fill so much more of the evaluation images than of the training images.
CROP_FACTOR = 1.5
CROP_SCALES = (1.0, 1.0)  # as the quickstart, whose photos have one scale
CROP_SOFTEN = 0.5  # evaluation images come from other photos, which may be less sharp
COLOR_JITTER = 0.2

# Levels: one of a stride if objects are so large, or small, that the others miss them.
STRIDES = (8, 16)
COARSE_STRIDE, COARSE_FROM_PX = 32, 128.0
FINE_STRIDE, FINE_BELOW_PX = 4, 8.0  # on a GPU; it has four times as many cells as stride 8

# Queries: head-room over the densest image, so that duplicates and background have some too.
QUERY_ROOM = 1.5
QUERY_STEP, LEAST_QUERIES, MOST_QUERIES = 50, 100, 900
LEAST_BASE, MOST_BASE = 0.0125, 0.4

# Length: the number of steps grows with the square root of the number of images.
BATCH: dict[Device, int] = {"cpu": 4, "gpu": 8}
STEPS, STEPS_AT_IMAGES = 1000, 50
LEAST_STEPS = 300
LEAST_PASSES = 10  # over a large set
EPOCH_STEPS = 25  # at least; a small set is repeated within an epoch
CROP_EPOCH_STEPS = 100
EVAL_SHARE = 0.12  # of the time of training
MOST_EVALUATIONS = 10
FORWARD_SHARE = 1 / 3  # of the time of a training step

# Rates, for 4 images per step. Adam's steps do not grow with the gradient, whose noise falls with
# the square root of the batch: so do the rates grow.
RATE_BATCH = 4
RATES = {"lr": 1e-3, "lr_backbone": 5e-4, "lr_sampling": 3e-4}
FINETUNE_FACTOR = 0.25  # weights that detect already need smaller steps
WARMUP_SHARE, LEAST_WARMUP, MOST_WARMUP = 0.03, 10, 500
EMA_SHARE, LEAST_EMA, MOST_EMA = 0.1, 0.97, 0.9998  # the average covers a tenth of the run

CACHED_BYTES = 10**9  # decoded images are kept in memory up to here
WORKERS: dict[Device, int] = {"cpu": 0, "gpu": 4}  # on a CPU, all cores compute
# What helps a new model on few images: docs/benchmarks.md#settings-for-few-images.
FEW_IMAGES: dict[str, object] = {"model.denoising": {}}
# Small objects, those whose median is below what is wanted, need finer numbers for their centers.
SMALL_OBJECTS: dict[str, object] = {"model.queries.center_offset": "box"}
