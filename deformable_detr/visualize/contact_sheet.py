"""Pictures in a grid."""

import math
from collections.abc import Sequence

from PIL import Image

GAP_PX = 8
BACKGROUND = (32, 32, 32)


def contact_sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Arrange pictures in a grid, about as many columns as rows, each in the middle of its cell."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width = max(one.width for one in pictures) + GAP_PX
    height = max(one.height for one in pictures) + GAP_PX
    sheet = Image.new("RGB", (columns * width + GAP_PX, rows * height + GAP_PX), BACKGROUND)
    for index, one in enumerate(pictures):
        row, column = divmod(index, columns)
        left = GAP_PX + column * width + (width - GAP_PX - one.width) // 2
        top = GAP_PX + row * height + (height - GAP_PX - one.height) // 2
        sheet.paste(one, (left, top))
    return sheet
