"""What is expected of all this, from single decisions to networks of hosts."""
