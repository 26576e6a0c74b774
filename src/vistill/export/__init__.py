"""From checkpoint to bundle: ONNX graphs, quantisation, parity."""
