"""Whole networks: what turns images into predictions. They compute no loss and pick no match."""

from detbench.core.detectors.dense import DenseDetector
from detbench.core.detectors.query import QueryDetector

Detector = DenseDetector | QueryDetector
"""Every network the engine trains: same `forward`, same `parameters_of`, a `backbone` and a `neck`."""
