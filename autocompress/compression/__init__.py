"""From a plan to a smaller model: decisions, methods, and what repairs the score."""
