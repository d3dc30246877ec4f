"""Label assignment as arithmetic; `detbench.parts.assigners` lists the rules a recipe may name.

Each rule is a pure function of tensors with a thin `assign_*` around it that takes a batch. Costs and
qualities are (M, Q): a row for each object, holding only the predictions of that object's own image.
"""
