"""Begin and end a command: handle its flags, its errors and Ctrl-C.

A script does three things: it calls end_at_interrupt, imports torch and numpy, and calls
run_command. At Ctrl-C Python raises KeyboardInterrupt, which run_command turns into one line. But
the imports take seconds. During them KeyboardInterrupt would print a long traceback, or code in C
would turn it into a misleading ImportError. So end_at_interrupt handles Ctrl-C until run_command
takes over. This file imports nothing large, so that almost no time passes before end_at_interrupt
is called.
"""
import argparse
import io
import os
import re
import signal
import sys
import unicodedata


# ---- Ctrl-C -----------------------------------------------------------------------------

def end_at_interrupt():
    """Let Ctrl-C print one line and end this program with status 130, as in a shell.

    Only Python's default handler is replaced. So a program that ignores Ctrl-C, because a shell
    script has started it with &, goes on ignoring it.
    """
    # Ctrl-C must not end an interactive session, which goes on after the script. python -i sets
    # the flag `interactive`. IPython, which can run a script with %run, sets the prompt sys.ps1.
    if sys.flags.interactive or hasattr(sys, "ps1"):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)


def exit_at_once(number, frame):
    """Handle the signal SIGINT. os._exit ends the program at once, because an import that was
    interrupted can be neither continued nor tidied up."""
    script = os.path.basename(sys.argv[0])
    # print() can fail in a handler, if the signal has come in the middle of another print().
    os.write(2, f"\n{script}: interrupted\n".encode())
    os._exit(130)


# ---- Flags ------------------------------------------------------------------------------

class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, which run_command prints as one line."""

    def __init__(self, prog, description):
        super().__init__(prog, description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise ValueError(message)


def path_name(text):
    """Return `text` as the path of a file or a folder. This argparse type refuses an empty path. An
    empty path usually comes from a shell variable that is not set, and it would often mean the
    present folder."""
    if text == "":
        raise argparse.ArgumentTypeError("a path is empty")
    return text


def integer_from(smallest):
    """Make an argparse type: an integer of at least `smallest`."""
    def whole_number(text):                              # argparse's message has this name
        value = int(text)
        if not smallest <= value < 2**31:
            raise argparse.ArgumentTypeError(f"{text} is not from {smallest} to {2**31 - 1}")
        return value
    return whole_number


def real_number(smallest=0.0, upper=2.0**31):
    """Make an argparse type: a number that is at least `smallest` and below `upper`."""
    def number(text):
        value = float(text)
        if not smallest <= value < upper:                # nan is refused here, too
            raise argparse.ArgumentTypeError(f"{text} is not at least {smallest:g} and below "
                                             f"{upper:.0f}")
        return value
    return number


def given_flags(argv):
    """List the names of the flags on the command line; --no-x is listed as --x.

    argv: the words of the command line; None: those with which this program was started
    """
    if argv is None:
        argv = sys.argv[1:]
    flags = []
    for word in argv:
        name = word.split("=")[0]                        # "--lr" of "--lr=0.1"
        # A value may begin with two dashes, too, such as the text "-- who is it?". But in a flag
        # only letters, digits and dashes follow after the two.
        if re.fullmatch("--[a-z0-9-]+", name):
            flags.append(name.replace("--no-", "--"))
    return flags


def refuse_flags(given, refused, reason):
    """Raise ValueError if one of the refused flags was given; reason: why it would be ignored."""
    for flag in given:
        if flag in refused:
            raise ValueError(f"{flag}: {reason}")


def allow_only(given, allowed, command):
    """Raise ValueError if a flag was given that is not allowed. command: what trains nothing, such
    as "--evaluate", for the message"""
    for flag in given:
        if flag not in allowed:
            raise ValueError(f"{flag}: {command} trains nothing, so it would be ignored")


# ---- Messages and errors ----------------------------------------------------------------

def printable(text):
    """Replace control characters, also tabs and line ends, by escapes such as \\x1b, because a
    terminal would obey some of them."""
    shown = ""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Zl", "Zp"):    # Zl, Zp: U+2028, U+2029
            character = character.encode("unicode_escape").decode()
        shown += character
    return shown


def warn(message):
    """Print a warning in one line, without characters that a terminal would obey. If torchrun has
    started several processes, only the first one prints it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {printable(message)}", file=sys.stderr)


def one_line(text):
    """Replace each run of white space in a text or an error, also of line ends, by one space."""
    return " ".join(str(text).split())


def first_few(texts, limit=6):
    """Join the first few texts and say how many more there are, so that messages stay short."""
    shown = "; ".join(text[:200] for text in texts[:limit])
    if len(texts) > limit:
        shown += f"; and {len(texts) - limit:,} more"
    return shown


def describe_error(error):
    """Return the text of an error that can be expected, such as a bad flag or a full disk, and None
    for any other error. The text of an OSError about a file is "FILE: what is wrong", without the
    number of the error, which Python puts first."""
    if isinstance(error, BrokenPipeError):
        return "the program that reads the output has ended (broken pipe)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    if is_about_memory(error):
        reason = one_line(error)
        if reason == "":                                 # Python's own MemoryError says nothing
            return "there is not enough memory"
        return f"there is not enough memory: {reason:.300}"
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return str(error)
    # If a process of torchrun ends while the others wait for it, gloo or NCCL raises an error in
    # these others. One of these phrases is in its text.
    connection_lost = "Connection closed by peer|Connection reset by peer|remote process exited"
    if isinstance(error, RuntimeError) and re.search(connection_lost, str(error)):
        return "another process has ended, and its message says why"
    return None


def is_about_memory(error):
    """Return True if an exception says that there is not enough memory.

    Python and numpy raise a MemoryError, PyTorch raises a RuntimeError, and the system an OSError.
    A RuntimeError or an OSError may have many other causes, too. So its text decides.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, (RuntimeError, OSError)):
        return False
    # torch on Windows says "not enough memory", NVIDIA's libraries say "..._ALLOC_FAILED".
    pattern = "out of memory|allocate memory|not enough memory|ALLOC_FAILED|ALLOCATION_FAILED"
    return re.search(pattern, str(error)) is not None


def run_command(name, action):
    """Call action() and return the exit status of the program.

    An error that describe_error knows is printed as one line, and the status is 2. Any other error
    is raised again. In Python's development mode (python -X dev) every error is raised again, so
    that a traceback shows where it arose. After Ctrl-C the status is 130, as in a shell. If all
    went well, the status is None, which means 0. SystemExit is not caught: --help raises it, and so
    does the training after a signal such as SIGTERM.
    """
    # sys.stdout is None if the program was started without it. In a notebook it has another class.
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal or the file cannot show is printed as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    # sys.stderr is None if it was closed (2>&-), but tqdm needs a file for its progress bars.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    # end_at_interrupt may have set this handler for the time of the imports, which are done now.
    had_exit_handler = signal.getsignal(signal.SIGINT) is exit_at_once
    try:
        if had_exit_handler:
            # During action() Ctrl-C raises KeyboardInterrupt, so that `finally` clauses run.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()
        # Without flush() Python would write the last printed text when it exits, where nothing can
        # catch an error. Here the OSError of a closed pipe is caught and printed below.
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = describe_error(error)
        if message is None or sys.flags.dev_mode:
            raise
        # A message may quote a long file. So only its first 2,000 characters are printed. A line
        # end becomes a space, because printable() would show it as \n.
        line = message.replace("\n", " ")[:2000]
        print(f"{name}: error: {printable(line)}", file=sys.stderr)
        return 2
    finally:
        if had_exit_handler:                             # nothing would catch KeyboardInterrupt now
            signal.signal(signal.SIGINT, exit_at_once)
