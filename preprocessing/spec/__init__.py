"""The prepared folder's format: its FeatureSpec, the rows of its mappings, and what they must satisfy."""
