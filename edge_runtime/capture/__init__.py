"""From a PyTorch module to a graph. torch is needed here, and nowhere further down."""
