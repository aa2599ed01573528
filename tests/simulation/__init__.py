"""The real cores in a made-up world: virtual clock and network, seeded faults."""
