"""Values of `tokenizer.ggml.token_type`.

Control and unknown tokens are read in a text where special tokens are, and left out of decoded text.
User-defined ones are read in every text, before anything is merged.
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TYPES = frozenset((NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE))
MATCHED = frozenset((UNKNOWN, CONTROL, USER_DEFINED))  # whole, wherever they stand in a text
