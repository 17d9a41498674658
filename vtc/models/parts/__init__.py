"""Parts that several families share: towers, decoders, attention, checks."""
