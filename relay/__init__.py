"""The bridge between subnets. Only the package's place so far."""
