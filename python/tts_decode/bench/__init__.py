"""What `tts-decode bench` measures: attention over trees, decode steps, searches, and the machine."""
