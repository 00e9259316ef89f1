"""The network as one ONNX graph for both phases, built node by node from the weights as they are read."""
