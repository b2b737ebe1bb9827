"""Values of `tokenizer.ggml.token_type`.

Control and unknown tokens are matched in texts that may hold special tokens, and left out of decoded text.
User-defined ones are matched in every text, before any merge.
"""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TYPES = frozenset((NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE))
MATCHED = frozenset((UNKNOWN, CONTROL, USER_DEFINED))  # as a whole, anywhere in a text
