"""Nearest rows: what `masked_topk`, `IndexFlatL2` and the searches of patches are made of."""
