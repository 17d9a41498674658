"""How visual tokens are chosen inside the decoder, one method per file."""
