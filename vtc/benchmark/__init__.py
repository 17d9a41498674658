"""Speed and memory of models and bundles."""
