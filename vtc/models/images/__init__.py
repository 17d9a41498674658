"""How images become pixels in each family of models."""
