"""A prompt, a score and a call that must not happen, for the tests of text branches."""

PROMPT = "Question?\n"


def grade(text):
    return sum(ord(char) * (i % 5 + 1) for i, char in enumerate(text)) % 101 / 101


async def never(request):
    raise AssertionError("no call was expected")
