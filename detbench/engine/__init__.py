"""One experiment, a seed and a folder in; a trained, tested and written-down model out."""
