"""One command, raftkv, with subcommands; configuration files."""
