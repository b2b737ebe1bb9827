"""The forward of a Hugging Face model over tree pages; loading, checking and refusing models."""
