"""Selectors inside the decoder, as a recipe names them: one file a method."""
