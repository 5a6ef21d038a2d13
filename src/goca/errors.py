"""The one exception that a user of goca is meant to read."""


class GocaError(Exception):
    """A mistake of the user's: the message is one line and says what to do next."""
