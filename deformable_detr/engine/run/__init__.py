"""Run folder of a training run: its files, lock, resumption, records and progress."""
