"""What a cluster tells of itself: the facts as values, the verdict on them, and how they read."""
