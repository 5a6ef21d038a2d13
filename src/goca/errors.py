"""The one exception that a user of goca is meant to read."""


class GocaError(Exception):
    """A mistake of the user's: the message is one line and says what to do next."""

    def __init__(self, message: str) -> None:
        # It may quote what the user wrote, line breaks included.
        super().__init__(" ".join(message.split()))
