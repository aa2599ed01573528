"""The scheduler: which node runs which job, and when."""
