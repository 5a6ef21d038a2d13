import signal
from collections.abc import Iterator

import pytest

# A run that was started in the background ignores Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def interrupts_stay() -> Iterator[None]:
    """What a test leaves on Ctrl-C would take it from the tests that follow in its process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is before, f"after the test, Ctrl-C calls {after}"
