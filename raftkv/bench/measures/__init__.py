"""The measurements of ``raftkv bench``: each is a :class:`raftkv.bench.measure.Measure`."""
