"""What is deployed: a model's forward graph with its weights, folded, calibrated, and then quantised.

Everything here needs NumPy and the native core alone, but for `captured.py`, which starts from a PyTorch module.
"""
