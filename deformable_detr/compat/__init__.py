"""Drop-in replacements for third-party extensions, backed by this package's operators."""
