"""Whole networks: what turns images into predictions. They compute no loss and pick no match."""

from detbench.core.detectors.dense import DenseDetector

Detector = DenseDetector
"""Every network the engine trains: same `forward`, same `parameters_of`, a `backbone` and a `neck`."""
