"""Diagnosis of failing runs: non-finite steps, their replay, stalls, AP that stays at zero."""
