"""The scheduler's decisions, one by one, without sockets or clocks."""
