"""Stands in for ``raftkv`` where only processes matter: init, serve, /readyz, pid file, SIGTERM.

What it should do comes in node.toml: ``[fake] ready = false``, ``exits = 3``, ``stubborn = true``.
"""

import os
import signal
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from raftkv.engine.pidfile import PidFile


def serve(config: Path) -> None:
    """Run until SIGTERM, the end of standard input, or as told."""
    document = tomllib.loads(config.read_text())
    told = document.get("fake", {})
    if "exits" in told:
        say("fake node is told to fail")
        sys.exit(told["exits"])
    if told.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if told.get("ready", True) else 503)
            self.end_headers()

    port = int(document["http"]["listen"].rpartition(":")[2])
    with PidFile(config.parent / "pid"):
        worker = subprocess.Popen(["/bin/sleep", "600"], process_group=os.getpgrp())
        (config.parent / "worker").write_text(str(worker.pid))
        if not told.get("stubborn"):
            signal.signal(signal.SIGTERM, lambda *_: os._exit(finish(worker)))
        threading.Thread(target=end_with_stdin, args=(worker,), daemon=True).start()
        say("fake node serves")
        HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def say(line: str) -> None:
    """Write to the node's log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def finish(worker: "subprocess.Popen[bytes]") -> int:
    """End the worker too."""
    worker.kill()
    worker.wait()
    return 0


def end_with_stdin(worker: "subprocess.Popen[bytes]") -> None:
    """Do what ``--until-eof`` promises."""
    sys.stdin.buffer.read()
    os._exit(finish(worker))


def main() -> None:
    """Do as raftkv would."""
    command, config = sys.argv[1], Path(sys.argv[sys.argv.index("--config") + 1])
    if command == "init":
        data = config.parent / "data"
        if tomllib.loads(config.read_text()).get("fake", {}).get("init_fails"):
            sys.exit("raftkv: told not to")
        data.mkdir(exist_ok=True)
    else:
        serve(config)


main()
