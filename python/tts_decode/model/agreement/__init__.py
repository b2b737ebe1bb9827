"""The self-check: the decoder's forward compared with the model's own before it serves."""
