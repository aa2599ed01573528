"""The benchmark: ``python -m bench`` measures everything in one run and prints one table."""
