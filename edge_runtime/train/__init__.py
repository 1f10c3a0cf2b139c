"""Local training: what a trainer is, batches, metrics, and the PyTorch reference trainer."""
