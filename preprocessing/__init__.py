"""From raw logs to prepared folders: sources, FeatureSpec and the workflow that connects them."""
