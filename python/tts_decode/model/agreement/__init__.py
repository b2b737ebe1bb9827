"""The self-check: compares the decoder's forward with the model's own before it serves."""
