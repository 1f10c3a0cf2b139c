"""What executes a graph. So far the oracle: every op in plain NumPy."""
