"""Whole networks: what turns images into predictions. They compute no loss and pick no match."""
