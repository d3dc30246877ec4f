"""Images and annotations on disk, and how they become batches."""
