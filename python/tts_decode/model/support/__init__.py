"""Which models are supported, and the names by which others are refused."""
