"""From a finished model to a file that a runtime runs."""
