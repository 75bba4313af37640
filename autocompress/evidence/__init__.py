"""What is promised of a model, and whether it holds: scores, similarity, cards, verification."""
