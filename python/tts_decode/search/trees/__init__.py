"""Trees of whole or partial answers, grown where statistics of earlier visits point."""
