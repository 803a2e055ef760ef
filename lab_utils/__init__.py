"""Code shared by the notebooks and scripts of the workshop."""

__version__ = "0.1.0"
