"""The version of the package; one place that importing anything else does not need."""

__version__ = "0.2.0"
