"""One command, raftkv, with subcommands; configuration files."""

import os
import signal

if os.getpid() == 1:
    # In a container. The kernel drops a signal that process 1 has no handler for, so that one that
    # came while a command was starting would be lost. So this is before all other imports.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
