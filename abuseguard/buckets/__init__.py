"""How much: token buckets, and the stores that keep them."""
