"""Real processes under real faults, and a judgement of what their clients saw."""
