"""From a raw log to a prepared folder: filter, partition by user, encode, split, write."""
