"""Small rules of English for captions and questions."""

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def article(words: str) -> str:
    """`words` with a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    """The plural of a shape's name, like "crosses"."""
    return f"{shape}{'es' if shape.endswith('s') else 's'}"
