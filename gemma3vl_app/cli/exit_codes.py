"""The exit codes of every command; docs/cli.md explains them."""

OK = 0
FAILED = 1  # one plain line on stderr says what failed and what to do
USAGE = 2  # the command line itself is wrong: an unknown option, a missing argument
INCOMPLETE = 3  # not all is well: failed items, a replay that differs, models not compared
INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 plus the signal
PIPE_CLOSED = 141  # whoever read the output has left, such as `head`: 128 plus that signal
