"""Answers that are judged, criticised and written again."""
