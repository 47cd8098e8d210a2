"""``python -m raftkv`` is the ``raftkv`` command."""

from raftkv.cli.main import main

main()
