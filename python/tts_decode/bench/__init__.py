"""The measurements of `tts-decode bench`: attention over trees, decode steps, searches, and the machine."""
