"""The exception whose message is written for users of goca."""


class GocaError(Exception):
    """A user's mistake.

    Args:
        message: One line that says what is wrong and what to do next; line breaks in it become spaces. It does not name
            a flag or control, because it may be read in Python, a terminal or a web page.
        hint: Name of the parameter that mends it, such as "dtype", if there is one. Each interface shows its own
            control for it: the command line adds "(--dtype)".
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = hint

    def __reduce__(self) -> tuple[type["GocaError"], tuple[str, str | None]]:
        # Exceptions are pickled by their args alone, and a worker's error must keep its hint.
        return type(self), (str(self), self.hint)
