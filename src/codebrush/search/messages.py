"""Says what messages of LanceDB mean, without what they tell about its inside."""

import re

# What LanceDB puts around the cause: the layers that passed an error on, and places in its source code.
_LAYER = re.compile(r"(Invalid input, |Invalid user input: |lance error: |LanceError\(\w+\): |Schema error: )")
_LOCATION = re.compile(r",? ?(at )?(/|[A-Z]:\\)\S*\.rs(:\d+)*\S*")


def plain_reason(error: Exception | str) -> str:
    """What a message of LanceDB says, in one line without its layers and the paths of its source code."""
    text = _LOCATION.sub("", _LAYER.sub("", " ".join(str(error).split()))).split(" Valid fields", 1)[0]
    return text.strip(" ,.")[:200]
