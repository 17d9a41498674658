"""Training of learned pruners: the base model stays frozen, only the selector's small network learns."""
