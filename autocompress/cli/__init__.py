"""The command line: thin verbs, and what people see."""
