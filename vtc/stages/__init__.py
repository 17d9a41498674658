"""What a recipe can do to a model, one file per kind of stage."""
