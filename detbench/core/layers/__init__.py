"""Layers that several detectors are made of. They know no detector, no loss and no matching."""
