"""Box metrics in NumPy: what a set of detections is worth against ground truth."""
