"""The hall where measuring and judging meet: what a run leaves behind, and how it is read back. Never torch."""
