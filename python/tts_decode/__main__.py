"""`python -m tts_decode`: the command `tts-decode`."""

from tts_decode.cli import main

main()
