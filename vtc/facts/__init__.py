"""What a model is, in numbers: its sizes, and how its visual tokens are laid out."""
