"""The project's own decoder: branches over one KV tree, and the scheduler that batches them."""
