"""The products and norms of a transformer's layers over packed weights, separately and all in one call."""
