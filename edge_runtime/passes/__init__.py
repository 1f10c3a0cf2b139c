"""Graph in, graph out: loss, gradients, updates, and the rewrites that make a training step small."""
