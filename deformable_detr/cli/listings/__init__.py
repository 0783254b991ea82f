"""Commands that list what there is: configs and settings."""
