"""A polite stop: a signal is noted, and the loop ends at the next point where it can save."""

import signal
import time

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last when a terminal goes; Windows has none
TOGETHER = 3.0  # seconds: SLURM and torchrun each send one to every process, and a terminal that closes sends several


class StopRequest:
    """While it is entered, the first of SIGNALS sets `requested`; one that comes more than TOGETHER later stops the
    program at once. SIGHUP is left alone where it is ignored, as under nohup."""

    def __init__(self):
        self.requested = False
        self.noted: float | None = None  # when; a caller may set `requested` without a signal
        self.handlers = {}

    def __enter__(self) -> "StopRequest":
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                self.handlers[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.noted is None:
            self.requested, self.noted = True, time.monotonic()
        elif time.monotonic() - self.noted > TOGETHER:
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
