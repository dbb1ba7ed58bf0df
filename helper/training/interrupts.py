"""A polite stop: SIGINT and SIGTERM are noted, and the loop ends at the next point where it can save."""

import signal


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM sets `requested`; a second one stops the program at once."""

    def __init__(self):
        self.requested = False
        self.handlers = {}

    def __enter__(self) -> "StopRequest":
        self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.requested = True
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
