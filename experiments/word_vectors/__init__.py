"""`word-vectors`: skip-gram with negative sampling, and a classifier of tweets on the vectors that are kept."""
