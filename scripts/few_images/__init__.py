"""Parts of compare_few_images.py: training of both detectors for a number of steps."""
