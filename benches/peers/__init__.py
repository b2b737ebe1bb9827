"""Other engines, each in an environment of its own, that measure what benches.decode_comparison asks them."""
