"""ONNX files as torch modules: for the torch device at given shapes, for the task's front door free of the batch."""
