"""Losses as arithmetic; `detbench.parts.losses` lists those a recipe may name.

Each file holds pure functions of tensors, unreduced, and the `*_of` forms that sum them over a `Supervision`.
"""
