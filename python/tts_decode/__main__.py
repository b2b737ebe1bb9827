"""Runs the command `tts-decode` as `python -m tts_decode`."""

from .cli import main

main()
