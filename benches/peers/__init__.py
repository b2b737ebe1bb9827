"""Other engines, each in its own environment, that take the measurements of benches.decode_comparison."""
