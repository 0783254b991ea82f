"""Import and export of other implementations' weights: names, files and class rows."""
