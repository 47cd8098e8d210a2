"""Reading ``node.toml``: every mistake becomes one line that names the file and the option."""

import difflib
import logging
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from raftkv.core.errors import StartError
from raftkv.engine.config import (
    InvalidOption,
    NodeConfig,
    SecurityOptions,
    check,
    check_cluster,
)

SECRET_BYTES_MIN = 16
_OLD_NAMES = {
    "http": {
        "max_value_bytes": "value_bytes_max",
        "max_connections": "connections_max",
    },
    "limits": {
        "entry_commands": "entry_operations_max",
        "entry_bytes": "entry_bytes_max",
        "queue_commands": "waiting_operations_max",
        "queue_bytes": "waiting_bytes_max",
    },
}
"""By table: what options were called before, and what they are called now."""

NODE_PLACE = "{node}"
"""Stands for the node's name in the paths of a configuration."""

_logger = logging.getLogger(__name__)


class ConfigError(StartError):
    """The configuration cannot be used; the message is one line for the operator."""


def load(path: str | os.PathLike[str], *, node: str | None = None) -> NodeConfig:
    """Read, check and complete a configuration file.

    ``node`` is the name of the node instead of ``node.name``, and ``{node}`` in a path stands for
    the name, so that one file can serve every node of a cluster. Paths in the file are relative to
    the file, so that a directory with its node.toml can be moved; ``secret_file`` is read here, so
    that what comes out needs no file any more to be used.

    Raises:
        ConfigError: The file cannot be used.
    """
    file = Path(path)
    try:
        config = _convert(_with_new_names(_named(_read(file), node), file))
        check_cluster(config)  # first: paths may depend on the node's name
        _check_private(config, file)
        config = _resolve(config, file.resolve().parent)
        check(config)
    except InvalidOption as error:
        raise ConfigError(f"{file}: {error}") from error
    return config


def _named(tables: dict[str, Any], node: str | None) -> dict[str, Any]:
    table = tables.setdefault("node", {})
    if node is not None and isinstance(table, dict):
        table["name"] = node
    return tables


def _with_new_names(tables: dict[str, Any], file: Path) -> dict[str, Any]:
    """Read options under their old names too, with a warning that says the new one."""
    for table, names in _OLD_NAMES.items():
        options = tables.get(table)
        if not isinstance(options, dict):
            continue
        for old, new in names.items():
            if old not in options:
                continue
            if new in options:
                raise InvalidOption(
                    f"{table}.{old}", f"is the old name of {table}.{new}, which is given as well"
                )
            options[new] = options.pop(old)
            _logger.warning("%s: %s.%s is called %s.%s now", file, table, old, table, new)
    return tables


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        advice = "--config or RAFTKV_CONFIG names the configuration"
        raise ConfigError(f"{file}: {error.strerror} ({advice})") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error


_MESSAGE = re.compile(
    r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$\.?(?P<where>[^`]*)`)?$", re.DOTALL
)
_FIELD = re.compile(r"(?:unknown|missing required) field `(?P<field>[^`]*)`")
_WORDING = (
    (re.compile(r"Expected `str` matching regex .*"), "does not have the right form"),
    (re.compile(r"Invalid enum value '(.*)'"), r"\1 is not one of the values allowed"),
    (re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`"), r"must be \1, not \2"),
    (re.compile(r"Expected `int` ([<>]=?) (-?[0-9]+)"), r"must be \1 \2"),
    (re.compile(r"`"), ""),
)
_TYPES = {"str": "a string", "int": "an integer", "bool": "true or false", "object": "a table"}


def _convert(tables: dict[str, Any]) -> NodeConfig:
    try:
        return msgspec.convert(tables, NodeConfig)
    except msgspec.ValidationError as error:
        raise _invalid_option(str(error)) from error


def _invalid_option(message: str) -> InvalidOption:
    """Translate msgspec's wording (``$.http`` and fields) into ours (``http.workers``)."""
    match = _MESSAGE.match(message)
    what, table = (match["what"], match["where"] or "") if match else (message, "")
    if match and match["key"]:
        return InvalidOption(table, "a name in it does not have the right form")
    field = _FIELD.search(what)
    if field is None:
        choices = ", ".join(_choices_of(table))
        return InvalidOption(table, _plain(what) + (f": {choices}" if choices else ""))
    option = f"{table}.{field['field']}" if table else field["field"]
    if "missing" in what:
        return InvalidOption(option, "is missing")
    return InvalidOption(option, "unknown option" + _suggestion(table, field["field"]))


def _plain(what: str) -> str:
    for pattern, replacement in _WORDING:
        what = pattern.sub(replacement, what)
    words = (_TYPES.get(word.rstrip(","), word) + "," * word.endswith(",") for word in what.split())
    return " ".join(words)


def _suggestion(table: str, misspelt: str) -> str:
    close = difflib.get_close_matches(misspelt, _options_of(table), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _choices_of(option: str) -> tuple[str, ...]:
    """The words that an option may be, if it has a closed list of them."""
    table, _, name = option.rpartition(".")
    kind = _options_of(table).get(name)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _options_of(table: str) -> dict[str, Any]:
    """The options of one table and their types; ``[...]`` in it is an array's place."""
    kind: Any = NodeConfig
    for part in table.split(".") if table else []:
        name = part.partition("[")[0]
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        kind = fields.get(name)
        if "[" in part:
            kind = kind.__args__[0]
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return {}
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


_PATH_OPTIONS = {
    "node": ("data_dir", "pid_file"),
    "http": ("tls_cert", "tls_key"),
    "security": ("peer_ca", "peer_cert", "peer_key", "secret_file"),
}


_KEYS = frozenset({"tls_key", "peer_key"})


def _resolve(config: NodeConfig, base: Path) -> NodeConfig:
    tables: dict[str, Any] = {}
    for table, options in _PATH_OPTIONS.items():
        old = getattr(config, table)
        paths = {option: getattr(old, option) for option in options}
        absolute = {
            option: str(base / path.replace(NODE_PLACE, config.node.name))
            for option, path in paths.items()
            if path is not None
        }
        tables[table] = msgspec.structs.replace(old, **absolute)
    tables["security"] = _with_secret(tables["security"])
    config = msgspec.structs.replace(config, **tables)
    _check_readable(config)
    return config


def _check_readable(config: NodeConfig) -> None:
    """A certificate that is not there is found now, not at the first connection."""
    for table in ("http", "security"):
        for option in _PATH_OPTIONS[table]:
            path = getattr(getattr(config, table), option)
            if path is not None and not os.access(path, os.R_OK):
                reason = "cannot be read" if Path(path).exists() else "no such file"
                raise InvalidOption(f"{table}.{option}", f"{path}: {reason}")
            if path is not None and option in _KEYS:
                # A group may: TLS keys of a machine are often kept for one.
                _require_private(f"{table}.{option}", Path(path), stat.S_IROTH | stat.S_IWOTH)


def _check_private(config: NodeConfig, file: Path) -> None:
    """The file itself must be, if the secret stands in it."""
    if config.security.secret is not None:
        _require_private("security.secret", file, 0o077)


def _require_private(option: str, file: Path, others: int) -> None:
    """Refuse a file with a secret that ``others``, bits of a mode, may use."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return  # whoever reads it says so
    if mode & others:
        raise InvalidOption(
            option, f"{file}: others may read it (mode {mode:04o}); chmod {mode & ~others:o} it"
        )


def _with_secret(security: SecurityOptions) -> SecurityOptions:
    if security.secret is not None and security.secret_file is not None:
        raise InvalidOption("security.secret", "give either secret or secret_file, not both")
    option, secret = "security.secret", security.secret
    if security.secret_file is not None:
        option, secret = "security.secret_file", _read_secret(Path(security.secret_file))
    if secret is not None and len(secret.encode()) < SECRET_BYTES_MIN:
        raise InvalidOption(option, f"the secret is shorter than {SECRET_BYTES_MIN} bytes")
    if secret is None and not (security.peer_ca or security.peer_cert or security.peer_key):
        # Also of a node without peers: its peer port is open all the same.
        raise InvalidOption(
            "security.secret_file", "is missing: peers need a cluster secret or mutual TLS"
        )
    return msgspec.structs.replace(security, secret=secret)


def _read_secret(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise InvalidOption(
            "security.secret_file",
            f"{file}: {error.strerror}; make it once for all nodes, "
            "with openssl rand -hex 32 and mode 0600",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidOption("security.secret_file", f"{file}: {reason}") from error
    _require_private("security.secret_file", file, 0o077)
    return text
