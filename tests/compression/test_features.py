"""Named nodes' outputs beside the model's own."""

import torch

from autocompress.compression.features import outputs_and_features
from tests.compression.repair.nets import chain, known


def test_outputs_are_the_models_and_features_the_nodes() -> None:
    model = known(chain()).graph.model
    x = torch.randn(3, 3, 8, 8)
    name = next(node.name for node in model.graph.nodes if node.target == "second")
    outputs, features = outputs_and_features(model, (x,), (name, "nowhere"))
    torch.testing.assert_close(outputs, model(x))
    assert set(features) == {name} and features[name].shape == (3, 5, 4, 4)
    outputs.sum().backward()  # type: ignore[no-untyped-call]
    assert features[name].requires_grad
