"""Pixels of images in memory, and the limits of what an image may ask for."""
