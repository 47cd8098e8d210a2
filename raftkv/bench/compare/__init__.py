"""raftkv beside other stores, on the same machine and the same disk, in turns."""
