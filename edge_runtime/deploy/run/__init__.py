"""The device's half: one runner per format. No torch, no onnx, no writer is imported here."""
