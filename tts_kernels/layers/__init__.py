"""The products and norms of a transformer's layers over packed weights, one by one and all in one call."""
