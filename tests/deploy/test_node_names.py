"""One configuration for all nodes of a cluster: the name from outside, and paths that follow it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raftkv.cli.config import ConfigError, load
from raftkv.cli.main import cli

SHARED = """
[cluster]
id = "demo"
replicas = 2
[cluster.nodes]
n1 = "127.0.0.1:7001"
n2 = "127.0.0.1:7002"
[node]
data_dir = "data/{node}"
[security]
secret_file = "{node}.secret"
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A configuration without a name, and the files of both nodes."""
    for node in ("n1", "n2"):
        secret = tmp_path / f"{node}.secret"
        secret.write_text(f"the secret of node {node}")
        secret.chmod(0o600)
    file = tmp_path / "node.toml"
    file.write_text(SHARED)
    return file


def test_the_name_comes_from_outside_and_paths_follow_it(shared: Path) -> None:
    """Both nodes read the same file and find what is theirs."""
    for node in ("n1", "n2"):
        config = load(shared, node=node)
        assert config.node.name == node
        assert config.node.data_dir == str(shared.with_name("data") / node)
        assert config.security.secret == f"the secret of node {node}"


def test_the_name_from_outside_wins_and_paths_follow_a_name_in_the_file(shared: Path) -> None:
    """``{node}`` is the name, wherever it comes from."""
    shared.write_text(SHARED.replace("[node]", '[node]\nname = "n1"'))
    assert load(shared).node.data_dir.endswith("data/n1")
    assert load(shared, node="n2").node.data_dir.endswith("data/n2")


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (None, r"node\.name: is missing"),
        ("n9", r"node\.name: 'n9' is not listed in cluster\.nodes"),
        ("../n1", r"node\.name: does not have the right form"),
    ],
)
def test_a_name_that_is_none_is_refused(shared: Path, node: str | None, reason: str) -> None:
    """No name, an unknown one, and one that would lead a path elsewhere."""
    with pytest.raises(ConfigError, match=reason):
        load(shared, node=node)


def test_a_node_table_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """The name from outside does not hide the mistake."""
    file = tmp_path / "node.toml"
    file.write_text('node = "n1"\n')
    with pytest.raises(ConfigError, match="must be a table"):
        load(file, node="n1")


@pytest.mark.parametrize("how", ["options", "environment"])
def test_init_takes_both_from_options_or_environment(shared: Path, how: str) -> None:
    """Containers set RAFTKV_CONFIG and RAFTKV_NODE, people give options."""
    options = ["--config", str(shared), "--node", "n2"] if how == "options" else []
    environment = {} if options else {"RAFTKV_CONFIG": str(shared), "RAFTKV_NODE": "n2"}
    done = CliRunner(env=environment).invoke(cli, ["init", *options])
    assert done.exit_code == 0, done.output
    assert (shared.parent / "data" / "n2" / "identity").exists()
    assert not (shared.parent / "data" / "n1").exists()
