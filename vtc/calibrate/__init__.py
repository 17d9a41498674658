"""Everything that looks at data before export and turns what a recipe leaves ``auto`` into numbers."""
