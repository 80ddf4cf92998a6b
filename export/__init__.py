"""From a checkpoint to a bundle: one ONNX graph with the guidance inside, checked against PyTorch."""
