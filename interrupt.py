"""What Ctrl-C does before a script has imported torch, and after its work is done.

Python raises KeyboardInterrupt at Ctrl-C; run_command in data.py turns that into one line. But
first a script imports torch and numpy, which takes seconds. An exception there would be a
traceback of many lines, or an ImportError where C code catches it. So each script first calls
end_at_interrupt. This file imports nothing large, so that almost no time passes before the call.
"""
import os
import signal
import sys
from contextlib import contextmanager


def end_at_interrupt():
    """Let Ctrl-C end this program in one line with status 130, as in a shell, from now on.

    A shell script that starts a command with & has it ignore Ctrl-C. Then Ctrl-C stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_program)


def end_program(number, frame):
    """Handle the signal SIGINT. os._exit ends the program without running anything more: whatever
    was going on, such as an import, is in no state to be continued or tidied up."""
    script = os.path.basename(sys.argv[0])
    os.write(sys.stderr.fileno(), f"\n{script}: interrupted\n".encode())
    os._exit(130)


@contextmanager
def interrupts_raised():
    """Let Ctrl-C raise KeyboardInterrupt in the with block, so that files in use are tidied up.

    Where end_at_interrupt was not called, as in a notebook, nothing is changed.
    """
    if signal.getsignal(signal.SIGINT) is not end_program:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end_program)
