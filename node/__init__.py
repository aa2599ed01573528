"""The node: runs jobs in processes of their own on one machine."""
