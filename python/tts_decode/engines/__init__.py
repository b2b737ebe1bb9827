"""Model back ends of the decoder."""
