"""The client as a whole, with a node that is only played."""
