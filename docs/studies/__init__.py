"""Studies on the reference VLM: each script makes the numbers and plots of one page of the documentation."""
