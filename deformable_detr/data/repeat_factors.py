"""Repeat factors of images with rare classes (LVIS: Gupta et al., 2019, section 4.1)."""

import numpy as np
import numpy.typing as npt

MOST_REPEATED = 100.0  # a class in one image of a million would repeat it a thousand times


def repeat_factors(
    labels: npt.NDArray[np.int64],
    num_objects: npt.NDArray[np.int64],
    *,
    num_classes: int,
    threshold: float,
) -> npt.NDArray[np.float64]:
    """Compute how often each image is shown per pass, in expectation.

    A class in a fraction f of the images has the factor max(1, sqrt(threshold / f)), and an image
    the largest factor of its classes; one without objects has 1. Factors are at most 100.

    Args:
        labels: (T,) classes of all objects, in 0..num_classes - 1, image by image.
        num_objects: (N,) number of objects of each image, T in all.
        num_classes: K.
        threshold: fraction of images below which a class is rare, above 0 and at most 1.

    Returns:
        (N,) factors, at least 1.
    """
    image = np.repeat(np.arange(len(num_objects)), num_objects)
    pairs = np.unique(np.stack([image, labels]), axis=1)  # each class once per image
    fraction = np.bincount(pairs[1], minlength=num_classes) / len(num_objects)
    with np.errstate(divide="ignore"):  # classes without objects are in no image
        by_class = np.sqrt(threshold / fraction).clip(1.0, MOST_REPEATED)
    factors = np.ones(len(num_objects))
    np.maximum.at(factors, pairs[0], by_class[pairs[1]])
    return factors
