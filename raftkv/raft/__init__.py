"""PySyncObj, hardened from outside. The only package that imports pysyncobj."""
