"""What `Task.model` may be besides a torch.nn.Module: the path of a model file."""

from pathlib import Path

import torch

from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError

SUFFIXES = (".onnx", ".pt2")
"""Of the model files that can be taken."""

_PICKLED = "it may hold any Python code and is not opened: load it in your task file and give the torch.nn.Module"
_ELSEWHERE = "convert it to ONNX first (tf2onnx, skl2onnx, coremltools and paddle2onnx do) and give that file"
_ADVICE = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"), _PICKLED),
    **dict.fromkeys((".tflite", ".h5", ".keras", ".pb", ".mlmodel", ".mlpackage", ".pdmodel"), _ELSEWHERE),
    ".safetensors": "it holds weights without a model: load it into yours in your task file",
    ".ort": "it is a compiled ONNX file: give the .onnx file it was made of",
}


def is_model_file(reference: str) -> bool:
    """Whether what should name a task names a model."""
    return Path(reference).suffix.lower() in {*SUFFIXES, *_ADVICE}


def settle(task: Task, folder: Path | None = None) -> None:
    """Makes `task.model` a torch.nn.Module if it is the path of a model file, relative to this folder.

    What the file is of is kept: verdicts are about it. Raises TaskError for what can't be a model.
    """
    if isinstance(task.model, torch.nn.Module):
        return
    if not isinstance(task.model, (str, Path)):
        raise TaskError(
            f"Task.model is a {type(task.model).__name__}; it must be a trained torch.nn.Module, or the path of an "
            ".onnx or .pt2 file"
        )
    path = (folder or Path()) / task.model
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from autocompress.task.onnx_file import model_of

        task.model = model_of(path, task.example_inputs)
    elif suffix == ".pt2":
        from autocompress.task.exported import program_of

        task.model = program_of(path, task.example_inputs)
    else:
        advice = _ADVICE.get(suffix, f"give a torch.nn.Module, or a file that ends in {' or '.join(SUFFIXES)}")
        raise TaskError(f"Task.model is {str(task.model)!r}, which is no model file that can be taken; {advice}")
