"""The data set in an output directory: manifests and what they add up to. Knows no command."""
