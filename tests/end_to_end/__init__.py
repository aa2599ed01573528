"""Tests from the outside: real nodes, real sockets, and the public face only."""
