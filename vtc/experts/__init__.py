"""Mixtures of experts: which modality uses which expert, where experts live, which of them can go."""
