"""Peers that lie: garbage, impossible values, names that lead out, floods, stolen identities."""
