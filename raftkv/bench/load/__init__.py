"""Load on a store, made by processes of its own: what is asked, how fast, and what became of it."""
