"""A Program: everything a device needs to train one model, in one file that no PyTorch is needed to open."""
