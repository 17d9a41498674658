"""Commands that are killed, starved and disturbed at every step; `make faults` runs all of it."""
