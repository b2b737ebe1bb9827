"""`python -m tts_decode`: the command `tts-decode`."""

from .cli import main

main()
