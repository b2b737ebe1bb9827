"""Shared-prefix KV storage and attention over search trees."""
