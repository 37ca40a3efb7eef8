"""How a command begins and ends: its flags, its errors, and Ctrl-C.

Python raises KeyboardInterrupt at Ctrl-C; run_command turns that into one line. But first a script
imports torch and numpy, which takes seconds. During an import the exception would print a long
traceback, or code in C would turn it into a misleading ImportError. So each script first calls
end_at_interrupt. This file imports nothing large, so that almost no time passes before the call.
"""
import argparse
import io
import os
import re
import signal
import sys
import unicodedata
from contextlib import suppress


# ---- Ctrl-C -----------------------------------------------------------------------------

def end_at_interrupt():
    """Let Ctrl-C print one line and end this program with status 130, as in a shell.

    A program that a shell script has started with & ignores Ctrl-C: then the signal does not have
    Python's default handler, and this function leaves it so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle_interrupt)


def handle_interrupt(number, frame):
    """Handle the signal SIGINT. os._exit ends the program without running anything more: an import
    that was interrupted can be neither continued nor tidied up."""
    script = os.path.basename(sys.argv[0])
    with suppress(OSError):                              # standard error may be closed
        os.write(2, f"\n{script}: interrupted\n".encode())
    os._exit(130)


# ---- Flags and errors -------------------------------------------------------------------

class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, which run_command prints as one line."""

    def __init__(self, prog, description):
        super().__init__(prog, description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise ValueError(message)


def printable(text):
    """Replace each character of a text that cannot be printed by an escape such as \\x1b. A
    terminal would obey some of them. All kinds of spaces stay, for most of which isprintable() is
    False, and so do the two invisible joiners of some scripts and of emoji."""
    joiners = "\u200c\u200d"
    shown = ""
    for character in text:
        is_space = unicodedata.category(character) == "Zs"
        if character.isprintable() or is_space or character in joiners:
            shown += character
        else:
            shown += character.encode("unicode_escape").decode()
    return shown


def print_error(name, message):
    """Print an error in one line. The message may come from a file, so only 2,000 characters of it
    are printed, and none that a terminal would obey."""
    line = message.replace("\n", " ")
    print(f"{name}: error: {printable(line[:2000])}", file=sys.stderr)


def warn(message):
    """Print a warning in one line, without characters that a terminal would obey. If torchrun has
    started several processes, only the first one prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {printable(message)}", file=sys.stderr)


def one_line(text):
    """Replace all white space in a text, line ends among it, by single spaces."""
    return " ".join(str(text).split())


def describe_error(error):
    """Return the text of an exception. If it is an OSError about a file, the text is "FILE: what is
    wrong", without the number that Python puts before it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def is_about_memory(error):
    """Return True if an exception says that there is not enough memory.

    Python and numpy raise a MemoryError. PyTorch raises a RuntimeError, but it does so for many
    other faults, too. So the text of a RuntimeError decides.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # torch on Windows says "not enough memory", NVIDIA's libraries say "..._ALLOC_FAILED".
    pattern = "out of memory|allocate memory|not enough memory|ALLOC_FAILED|ALLOCATION_FAILED"
    return re.search(pattern, str(error)) is not None


def run_command(name, action):
    """Call action() and return the exit status of the program.

    An error that can be expected, such as a bad flag or a full disk, is printed as one line. The
    status is None if all went well, 2 after an error and 130 after Ctrl-C, as in a shell. With the
    environment variable MINIALBERT_TRACEBACK=1 Python shows where the error was raised.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the terminal or the file cannot show is printed as a question mark.
        sys.stdout.reconfigure(errors="replace")
    if sys.stderr is None:
        # The program began with standard error closed (2>&-). Its messages and the progress bars
        # of tqdm have to go somewhere.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    has_our_handler = signal.getsignal(signal.SIGINT) is handle_interrupt
    try:
        if has_our_handler:
            # The imports are done. In the action Ctrl-C raises, so that clauses with `finally` run.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()
        # What was printed is written out here. If the pipe is closed, this raises an OSError, which
        # is printed below. Python itself would do it at its very end, where nothing can catch the
        # error.
        if sys.stdout is not None:                       # None if the program began without it
            sys.stdout.flush()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MINIALBERT_TRACEBACK"):       # for whoever changes the program
            raise
        print_error(name, describe_error(error))
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_about_memory(error):
            raise
        message = "there is not enough memory"
        reason = one_line(error)
        if reason != "":                                 # Python's own MemoryError says nothing
            message += f": {reason:.300}"
        print_error(name, message)
        return 2
    except BaseException as error:
        # The tokenizers library, which is written in Rust, raises PanicException if a rule of a
        # tokenizer.json takes too long on some text. It is not a subclass of Exception.
        if type(error).__name__ != "PanicException":
            raise
        print_error(name, f"the tokenizers library gave up: {error}")
        return 2
    finally:
        if has_our_handler:
            signal.signal(signal.SIGINT, handle_interrupt)
