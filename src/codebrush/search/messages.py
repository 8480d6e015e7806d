"""Says what messages of LanceDB mean, without what they tell about its inside."""

import re

# What LanceDB puts around the cause: the layers that passed an error on, and places in its source code.
_LAYER = re.compile(r"(Invalid input, |Invalid user input: |lance error: |LanceError\(\w+\): |Schema error: )")
_LOCATION = re.compile(r",? ?(at )?(/|[A-Z]:\\)\S*\.rs(:\d+)*\S*")

# What is wrong with a condition: what LanceDB's message has in it -> how a user would say it.
_CONDITION = (
    (r'No field named "(.+?)"(?=[\s.,)]|$)', "there is no column {0}; text stands in single quotes, like '{0}'"),
    (r"No field named ([^\s,()]+?)(?=\.?[\s,)]|\.?$)", "there is no column {0}; text stands in quotes, like '{0}'"),
    (r"Expected: an expression, found: EOF", "it ends too early"),
    (r"Expected: (.+?), found: EOF", "it ends before {0}"),
    (r"Expected: (.+?), found: (.+?)(?: at Line|\)|$)", "it has {1} in place of {0}"),
    (r"Unterminated string literal", "a quote is not closed"),
    (r"does not return a boolean", "it compares nothing: write a comparison, like width > 64"),
    (r"literal Utf8\(\"(.*?)\"\) and could not convert", "a column that holds no text is compared with '{0}'"),
    (r"could not convert to literal of type", "a column is compared with a value of another kind"),
    (r"Invalid function '(.+?)'", "there is no function {0}"),
    (r"not implemented|[Nn]ot supported", "only comparisons of columns with values are known here"),
)  # fmt: skip


def condition_fault(error: Exception | str) -> str:
    """What is wrong with a condition by the message of LanceDB that refuses it, in a user's words where it is known."""
    text = " ".join(str(error).split())
    for pattern, said in _CONDITION:
        if found := re.search(pattern, text):
            return said.format(*found.groups())
    return plain_reason(error).removeprefix("Error parsing statement: SELECT 1 FROM t WHERE ")


def plain_reason(error: Exception | str) -> str:
    """What a message of LanceDB says, in one line without its layers and the paths of its source code."""
    text = _LOCATION.sub("", _LAYER.sub("", " ".join(str(error).split()))).split(" Valid fields", 1)[0]
    return text.strip(" ,.")[:200]
