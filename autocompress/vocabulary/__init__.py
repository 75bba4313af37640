"""The words that both halves share: workloads, number formats' rule, errors, dominance."""
