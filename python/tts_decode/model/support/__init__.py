"""Which models are served, and by which name the others are refused."""
