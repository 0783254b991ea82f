"""Mean and standard deviation by which images are normalized."""

from deformable_detr.pixels.channels import RGB

# Mean and standard deviation of R, G and B in [0, 1], by which images are normalized.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The means of these over the colors, by which each channel of other images is normalized.
CHANNEL_MEAN = sum(IMAGENET_MEAN) / 3
CHANNEL_STD = sum(IMAGENET_STD) / 3


def normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, by which images are normalized."""
    if channels == RGB:
        return IMAGENET_MEAN, IMAGENET_STD
    return (CHANNEL_MEAN,) * channels, (CHANNEL_STD,) * channels
