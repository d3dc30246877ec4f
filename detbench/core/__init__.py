"""The detector core: tensors and modules. It knows no file, recipe, run or device policy."""
