"""The bridge between a broker and peers that can't reach each other."""
