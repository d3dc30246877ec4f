"""What a decoder starts from: learned queries, proposals, noisy objects."""
