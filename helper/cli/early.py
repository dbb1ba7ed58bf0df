"""To be imported before anything else: Ctrl-C while the libraries are loaded ends in one line, not in a traceback."""

import os
import sys


def _report(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
