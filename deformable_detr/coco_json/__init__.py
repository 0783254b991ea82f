"""COCO JSON: reading of files, and the rules that annotations and results must meet."""
