"""Weights that others published: reading their files, and tables of what each tensor is called there and here."""
