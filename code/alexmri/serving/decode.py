from alexmri.serving.arrays import MOST_PICTURES
from alexmri.serving.codec import (
    CONTENT_TYPES,
    MOST_PIXELS,
    PixelBudget,
    Record,
    read_records,
    to_pixels,
)

MAX_IMAGES, MAX_PIXELS = MOST_PICTURES, MOST_PIXELS
__all__ = ["CONTENT_TYPES", "PixelBudget", "Record", "read_records", "to_pixels"]
