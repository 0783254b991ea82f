"""Data sets in other formats than one COCO file: recognition, reading, splitting and writing."""
