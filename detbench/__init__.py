"""detbench: an experiment bench for object detection."""

__version__ = "0.1.0"
