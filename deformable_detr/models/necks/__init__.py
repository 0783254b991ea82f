"""Modules that turn feature maps into the pyramid the encoder reads."""
